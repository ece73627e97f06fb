package manifest

import "slices"

// Kinds are those that a manifest may declare, as Meta.kind has them.
func Kinds() []string { return slices.Clone(kinds) }

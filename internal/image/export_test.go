package image

import "time"

// Hasten shortens the patience with registries.
func (s *Store) Hasten(stall, retry time.Duration) { s.stall, s.retry = stall, retry }

// Package torture is the fault campaign: a whole capsule on a network of the test's own,
// workloads that keep ledgers, and one fault after another. Plan tells what is done and
// what came of it. It runs with the build tag "machine", as root, by "make torture".
package torture

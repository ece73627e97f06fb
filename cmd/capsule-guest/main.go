// Capsule-guest is process 1 of a microVM: the agent that makes the payload's
// surroundings, runs it, and serves the capsule. Called by another name it becomes
// the payload's first process, or a command beside it.
package main

import "capsule/internal/guest"

func main() {
	guest.Stage()
	guest.Main()
}

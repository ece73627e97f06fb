// Command capsule-runc takes the place of runc for a container whose environment
// holds secrets, which are not in the settings that containerd keeps on the disk.
package main

import "capsule/internal/runc"

func main() { runc.Main() }

// Package metadata cuts the power around the moment at which a pool's metadata is
// full. No capsule gets there in the time of a test: the metadata is small here
// and is filled by the kernel's own messages, in a machine that test/vmexec
// boots; dm-log-writes records what is written.
package metadata

// Command silent is a process 1 that speaks on the serial line and to nobody.
package main

import (
	"fmt"
	"time"
)

func main() {
	fmt.Println("up, but nobody answers")
	time.Sleep(1<<63 - 1)
}

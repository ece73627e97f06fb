// Command payload is what test images run: one static program with the few
// verbs that tests need, so that no shell is needed in an image. The verb is
// the first argument, or the name that the program was started by.
//
// Verbs can be chained with an argument "then": "print up then sleep 1h".
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// verbs by name; each gets its arguments and returns the exit code.
var verbs = map[string]func(args []string) int{
	"allocate": allocate,
	"args":     args,
	"ask":      ask,
	"bind":     bind,
	"bomb":     bomb,
	"bytes":    printBytes,
	"cat":      cat,
	"cold":     cold,
	"cwd":      cwd,
	"date":     date,
	"df":       df,
	"dial":     dial,
	"env":      env,
	"exit":     exit,
	"fill":     fill,
	"false":    func([]string) int { return 1 },
	"http":     serveHTTP,
	"hostname": hostname,
	"id":       id,
	"keep":     keep,
	"kill":     kill,
	"ledger":   keepLedger,
	"lines":    lines,
	"lookup":   lookup,
	"ls":       ls,
	"mkdir":    mkdir,
	"print":    printWords,
	"printerr": printErr,
	"rm":       rm,
	"sleep":    sleep,
	"spawn":    spawn,
	"stat":     stat,
	"status":   status,
	"stty":     stty,
	"sum":      sum,
	"tick":     tick,
	"trap":     trap,
	"true":     func([]string) int { return 0 },
	"udp":      serveUDP,
	"write":    write,
}

func main() {
	words := os.Args
	if verbs[filepath.Base(words[0])] == nil {
		words = words[1:]
	} else {
		words[0] = filepath.Base(words[0])
	}
	for len(words) > 0 {
		this := words
		words = nil
		if i := slices.Index(this, "then"); i > 0 && this[0] != "args" {
			this, words = this[:i], this[i+1:]
		}
		verb := verbs[this[0]]
		if verb == nil {
			fmt.Fprintf(os.Stderr, "payload: no verb %q\n", this[0])
			os.Exit(2)
		}
		if code := verb(this[1:]); code != 0 {
			os.Exit(code)
		}
	}
}

// fail reports an error of a verb and is its exit code.
func fail(err error) int {
	fmt.Fprintln(os.Stderr, "payload:", err)
	return 1
}

// argument returns the i-th argument or a default.
func argument(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

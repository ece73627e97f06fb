package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// fenced are the blocks of a page, with what they are.
var fenced = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// needsShell tells what of a page of runbooks can't be done with capsulectl alone.
func needsShell(page string) []string {
	var wrong []string
	if strings.Contains(page, "capsule debug") {
		wrong = append(wrong, "it needs the shell of \"capsule debug\"")
	}
	for _, block := range fenced.FindAllStringSubmatch(page, -1) {
		if kind := block[1]; kind != "console" && kind != "yaml" {
			wrong = append(wrong, "a block of "+kind+": "+block[2])
			continue
		}
		if block[1] == "yaml" {
			continue
		}
		for line := range strings.Lines(block[2]) {
			command, asked := strings.CutPrefix(line, "$ ")
			if asked && (!strings.HasPrefix(command, "capsulectl ") || strings.ContainsAny(command, "|;&<>`")) {
				wrong = append(wrong, "it is more than capsulectl: "+line)
			}
		}
	}
	for _, program := range []string{"lvs", "vgs", "pvs", "lvm", "mount", "fsck", "e2fsck", "systemctl", "journalctl", "ssh", "sudo", "dd", "ip addr", "nft", "touch"} {
		if strings.Contains(page, "`"+program+" ") || strings.Contains(page, "`"+program+"`") {
			wrong = append(wrong, "it names "+program)
		}
	}
	return wrong
}

// No operation of the runbooks needs a shell, and all that the issue asks for have one.
func TestOperations(t *testing.T) {
	data, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	for _, wrong := range needsShell(page) {
		t.Error(wrong)
	}
	for _, want := range []string{"PERM is full", "The pool is full", "An update loops", "The owner's key is lost", "The disk is dying", "The clock is wrong",
		"The address is unknown", "A workload restarts for ever", "A service hangs", "Moving to new hardware"} {
		_, rest, found := strings.Cut(page, "\n## "+want+"\n")
		section, _, _ := strings.Cut(rest, "\n## ")
		if !found || !strings.Contains(section, "\n$ capsulectl ") {
			t.Errorf("no runbook %q with a command", want)
		}
	}
}

func TestOperationsFaults(t *testing.T) {
	for _, page := range []string{
		"```console\n$ ssh box\n```", "```console\n$ capsulectl get | sh\n```", "```sh\nls\n```", "run `lvs` there", "`capsulectl capsule debug`",
	} {
		if len(needsShell(page)) == 0 {
			t.Errorf("%q: taken for one without a shell", page)
		}
	}
	if wrong := needsShell("```console\n$ capsulectl get\nNAME | KIND\n```\n```yaml\nkind: Capsule\n```"); wrong != nil {
		t.Error(wrong)
	}
}

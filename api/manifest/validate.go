package manifest

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/distribution/reference"
	"google.golang.org/protobuf/reflect/protoreflect"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of what a workload may declare.
const (
	NameMax        = 40              // bytes
	GraceMax       = 5 * time.Minute // between the stop signal and SIGKILL
	MemoryMin      = 6 << 20         // bytes; less can't hold a start of the runtime
	cpusMin        = 10              // thousandths; the kernel's quota goes no lower
	cpusMax        = 512 * 1000      // thousandths
	vmMemoryMin    = 16 << 20        // bytes, of a MicroVM; less can't hold a start of a program
	vmCPUsMax      = 64 * 1000       // thousandths, of a MicroVM
	vmMountsMax    = 16              // of a MicroVM
	pidsMax        = 1 << 22         // PID_MAX_LIMIT of a 64-bit kernel
	portsMax       = 256             // of one workload; a range is one
	shiftedMax     = 16384           // ports of one workload in ranges that lead to other numbers
	mountsMax      = 64              // of one workload
	envMax         = 1000            // of one workload
	envNameMax     = 256             // bytes
	envValueMax    = 64 << 10        // bytes; the kernel takes 128 KiB in one string
	argvMax        = 1000            // command and args each
	ArgvBytesMax   = 256 << 10       // bytes; command, args and env together stay well below ARG_MAX
	imageMax       = 512             // bytes
	userMax        = 128             // bytes
	pathMax        = 4095            // bytes, as the kernel's PATH_MAX
	maxPort        = 65535
	apiPort        = 50000 // TCP, the capsule's own
	uidMax         = 1<<32 - 2
	labelForm      = "lower-case letters, digits and \"-\""
	fieldsMaxDepth = 8
)

const restartNever = "never"

var (
	kinds    = []string{KindContainer, KindMicroVM, KindVolume, KindSecret, KindCapsule}
	restarts = []string{"always", "on-failure", restartNever}
	// taken names: "localhost" is everybody's own, "system" and "capsule" are ours.
	taken = []string{"localhost", "system", "capsule"}
)

func isWorkload(kind string) bool { return kind == KindContainer || kind == KindMicroVM }

// problem is a broken rule and the field that breaks it.
type problem struct {
	path, message string
	lacks         bool // something below the path is missing
}

// Validate checks an object by all rules that need no knowledge of the capsule.
// It is run again by the server on what any client sends. Its class is
// InvalidArgument.
func Validate(o *capsulev1.Object) error {
	found := problems(o)
	if len(found) == 0 {
		return nil
	}
	what := "object"
	if m := o.GetMeta(); m.GetKind() != "" && m.GetName() != "" {
		what = fmt.Sprintf("%s %q", clip(m.GetKind()), clip(m.GetName()))
	}
	lines := make([]string, 0, len(found))
	for _, p := range found[:min(len(found), maxErrors)] {
		lines = append(lines, what+": "+p.message)
	}
	return invalid("%s", strings.Join(lines, "\n"))
}

// problems are all broken rules of an object, defaults filled in or not.
func problems(o *capsulev1.Object) []problem {
	c := &check{}
	c.meta(o.GetMeta())
	switch kind := o.GetMeta().GetKind(); {
	case kind == KindVolume:
		if o.GetVolume().GetSpec() == nil {
			c.add("", "the spec is missing")
			break
		}
		c.known(o.GetVolume().GetSpec().ProtoReflect(), 0)
		c.volume(o.GetVolume().GetSpec())
	case kind == KindSecret:
		if o.GetSecret().GetSpec() == nil {
			c.add("", "the spec is missing")
			break
		}
		c.known(o.GetSecret().GetSpec().ProtoReflect(), 0)
		c.secret(o.GetSecret().GetSpec())
	case kind == KindCapsule:
		if o.GetCapsule().GetSpec() == nil {
			c.add("", "the spec is missing")
			break
		}
		c.known(o.GetCapsule().GetSpec().ProtoReflect(), 0)
		c.capsule(o.GetCapsule().GetSpec())
	case isWorkload(kind):
		if o.GetWorkload().GetSpec() == nil {
			c.add("", "the spec is missing")
			break
		}
		c.known(o.GetWorkload().GetSpec().ProtoReflect(), 0)
		c.microVM, c.name = kind == KindMicroVM, o.GetMeta().GetName()
		c.spec(o.GetWorkload().GetSpec())
	}
	return c.found
}

type check struct {
	microVM bool   // the fields are those of a MicroVM
	name    string // of the workload
	found   []problem
}

func (c *check) add(path, format string, args ...any) {
	c.found = append(c.found, problem{path: path, message: fmt.Sprintf(format, args...)})
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckName refuses what can't be the name of an object or of a snapshot. Its
// class is InvalidArgument.
func CheckName(name string) error {
	if p := nameProblem(name); p != "" {
		return invalid("%s", p)
	}
	return nil
}

// nameProblem says what is wrong with an object's name, or "".
func nameProblem(name string) string {
	switch {
	case name == "":
		return "name is missing"
	case len(name) > NameMax:
		return fmt.Sprintf("name %q is longer than %d characters", clip(name), NameMax)
	case !label.MatchString(name):
		return fmt.Sprintf("name %q must be %s, with no \"-\" at its ends", name, labelForm)
	case strings.Trim(name, "0123456789-") == "":
		return fmt.Sprintf("name %q must have a letter, or it reads as an address", name)
	case slices.Contains(taken, name):
		return fmt.Sprintf("name %q is the capsule's own", name)
	}
	return ""
}

func (c *check) meta(m *capsulev1.Meta) {
	switch kind := m.GetKind(); {
	case kind == "":
		c.add("kind", "kind is missing; want %s", words(kinds))
	case !slices.Contains(kinds, kind):
		c.add("kind", "unknown kind %q; %s", clip(kind), suggest(kind, kinds))
	}
	if m.GetKind() == KindCapsule {
		if m.GetName() != CapsuleName {
			c.add("name", "name %q: there is one object of kind Capsule, and it is called %q; leave the name out (the machine's own name is its hostname)", clip(m.GetName()), CapsuleName)
		}
		return
	}
	if p := nameProblem(m.GetName()); p != "" {
		c.add("name", "%s", p)
	}
}

// known refuses fields of a newer client that this version would drop unseen.
func (c *check) known(m protoreflect.Message, depth int) {
	if len(m.GetUnknown()) > 0 {
		c.add("", "%s has fields that this version of Capsule does not know", m.Descriptor().Name())
	}
	if depth == fieldsMaxDepth {
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				c.known(v.List().Get(i).Message(), depth+1)
			}
		default:
			c.known(v.Message(), depth+1)
		}
		return true
	})
}

func (c *check) spec(s *capsulev1.WorkloadSpec) {
	c.image(s.GetImage())
	c.argv(s)
	c.variables("env", s.GetEnv(), envMax)
	c.secrets(s)
	c.network(s)
	if r := s.GetRestart(); r != "" && !slices.Contains(restarts, r) {
		c.add("restart", "unknown restart policy %q; %s", clip(r), suggest(r, restarts))
	} else if r == restartNever && s.GetRequiredForUpdate() {
		c.add("requiredForUpdate", "requiredForUpdate: with restart \"never\" it does not start again with the capsule, and every update would be rolled back; want restart always or on-failure")
	}
	c.ports(s)
	c.mounts(s.GetMounts())
	c.health(s)
	c.rollback(s)
	c.dependsOn(s.GetDependsOn())
	c.resources(s.GetResources())
	c.user(s.GetUser())
	if p := s.GetWorkingDir(); p != "" {
		c.absolute("workingDir", p)
	}
	if sig := s.GetStopSignal(); sig != "" {
		if _, err := ParseSignal(sig); err != nil {
			c.add("stopSignal", "stopSignal: %v", err)
		}
	}
	if g := s.GetStopGrace(); g != nil && (!g.IsValid() || g.AsDuration() < 0 || g.AsDuration() > GraceMax) {
		c.add("stopGrace", "stopGrace must be within 0s and %s", formatDuration(GraceMax))
	}
}

func (c *check) image(ref string) {
	switch _, err := reference.ParseNormalizedNamed(ref); {
	case ref == "":
		c.add("image", "image is missing")
	case len(ref) > imageMax:
		c.add("image", "image reference is longer than %d characters", imageMax)
	case err != nil:
		c.add("image", "image %q: %v", clip(ref), err)
	}
}

func (c *check) argv(s *capsulev1.WorkloadSpec) {
	total := 0
	for _, list := range []struct {
		name  string
		words []string
	}{{"command", s.GetCommand()}, {"args", s.GetArgs()}} {
		if len(list.words) > argvMax {
			c.add(list.name, "%s has more than %d words", list.name, argvMax)
		}
		for i, w := range list.words {
			total += len(w)
			if bad := badText(w); bad != "" {
				c.add(index(list.name, i), "%s: %s", index(list.name, i), bad)
			}
		}
	}
	if len(s.GetCommand()) > 0 && s.GetCommand()[0] == "" {
		c.add("command[0]", "command[0] is empty, want a program")
	}
	for name, value := range s.GetEnv() {
		total += len(name) + len(value) + len("=\x00")
	}
	if total > ArgvBytesMax {
		c.add("command", "command, args and env hold %d bytes together, at most %d can be given to a program", total, ArgvBytesMax)
	}
}

// variables checks a field that adds to the environment.
func (c *check) variables(field string, env map[string]string, most int) {
	if len(env) > most {
		c.add(field, "%s has more than %d entries", field, most)
		return
	}
	for _, name := range sortedKeys(env) {
		at := field + "." + name
		switch {
		case name == "":
			c.add(field, "%s: a name is empty", field)
		case len(name) > envNameMax:
			c.add(at, "%s: name %q is longer than %d bytes", field, clip(name), envNameMax)
		case strings.ContainsFunc(name, func(r rune) bool { return r == '=' || unicode.IsSpace(r) || unicode.IsControl(r) }) || !utf8.ValidString(name):
			c.add(at, "%s: name %q must have no \"=\", space or control character", field, clip(name))
		}
		value := env[name]
		if len(value) > envValueMax {
			c.add(at, "%s: value of %q is longer than %d bytes", field, clip(name), envValueMax)
		} else if bad := badText(value); bad != "" {
			c.add(at, "%s: value of %q: %s", field, clip(name), bad)
		}
	}
}

func (c *check) user(user string) {
	if user != "" && !isAccount(user) {
		c.add("user", "user %q: want \"user\", \"uid\", \"user:group\" or \"uid:gid\"", clip(user))
	}
}

// isAccount tells what can name a user, and a group.
func isAccount(user string) bool {
	name, group, hasGroup := strings.Cut(user, ":")
	bad := len(user) > userMax || name == "" || (hasGroup && group == "")
	for _, part := range []string{name, group} {
		bad = bad || strings.ContainsFunc(part, func(r rune) bool { return r == ':' || r == '/' || unicode.IsSpace(r) || unicode.IsControl(r) })
		if strings.Trim(part, "0123456789") == "" && part != "" {
			n, err := strconv.ParseUint(part, 10, 64)
			bad = bad || err != nil || n > uidMax
		}
	}
	return !bad
}

func (c *check) absolute(at, p string) {
	switch {
	case !path.IsAbs(p):
		c.add(at, "%s: path %q must be absolute", at, clip(p))
	case len(p) > pathMax:
		c.add(at, "%s: path is longer than %d bytes", at, pathMax)
	case badText(p) != "":
		c.add(at, "%s: path %s", at, badText(p))
	}
}

// badText says why a text can't be handed to a program, or "".
func badText(s string) string {
	switch {
	case strings.ContainsRune(s, 0):
		return "has a NUL character, which no program can be given"
	case !utf8.ValidString(s):
		return "is not UTF-8 text"
	}
	return ""
}

func index(name string, i int) string { return name + "[" + strconv.Itoa(i) + "]" }

func words(list []string) string { return strings.Join(list, ", ") }

func suggest(word string, known []string) string {
	if meant := nearest(word, known); meant != "" {
		return fmt.Sprintf("did you mean %q?", meant)
	}
	return "want one of " + words(known)
}

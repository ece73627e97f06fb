package manifest

import (
	"regexp"
	"strings"
)

// kernelMax bounds the arguments together, in bytes: the kernel's command line has
// 2 KiB, of which ours takes a few hundred.
const kernelMax = 1024

// kernelArgument is one that may be given to the kernel, with its values. They are
// those that tell how hardware is driven, and none that say what is booted, what is
// verified, or what happens when it fails.
type kernelArgument struct {
	name   string
	values string // a pattern of the whole value; "" takes none
	form   string // of the values, for people
}

// deviceQuirks are "vendor:product:flags" of USB devices.
const deviceQuirks = `[0-9a-f]{4}:[0-9a-f]{4}:[a-z]+(,[0-9a-f]{4}:[0-9a-f]{4}:[a-z]+)*`

// kernelArguments are all that are known to be safe.
var kernelArguments = []kernelArgument{
	{"console", `tty[0-9]{1,2}|(ttyS|ttyUSB)[0-9]{1,2}(,[0-9]{3,7}[noe]?[78]?)?|hvc[0-9]`, "tty0, ttyS1 or ttyS1,115200n8"},
	{"consoleblank", `[0-9]{1,5}`, "seconds"},
	{"loglevel", `[0-7]`, "0 to 7"},
	{"mitigations", `auto|auto,nosmt|off`, "auto, auto,nosmt or off"},
	{"nosmt", ``, ""},
	{"nomodeset", ``, ""},
	{"intel_iommu", `on|off|on,sm_on|sm_on`, "on or off"},
	{"amd_iommu", `on|off|force_enable`, "on or off"},
	{"iommu", `pt|nopt|soft`, "pt, nopt or soft"},
	{"iommu.passthrough", `[01]`, "0 or 1"},
	{"iommu.strict", `[01]`, "0 or 1"},
	{"intel_pstate", `disable|passive|active|no_hwp`, "disable, passive, active or no_hwp"},
	{"amd_pstate", `disable|passive|active|guided`, "disable, passive, active or guided"},
	{"intel_idle.max_cstate", `[0-9]`, "0 to 9"},
	{"processor.max_cstate", `[0-9]`, "0 to 9"},
	{"pcie_aspm", `off`, "off"},
	{"pcie_aspm.policy", `default|performance|powersave|powersupersave`, "default, performance, powersave or powersupersave"},
	{"pcie_port_pm", `off`, "off"},
	{"pci", `noaer|nomsi|realloc|noaer,realloc`, "noaer, nomsi or realloc"},
	{"nvme_core.default_ps_max_latency_us", `[0-9]{1,7}`, "microseconds"},
	{"usbcore.autosuspend", `-1|[0-9]{1,4}`, "seconds, or -1"},
	{"usbcore.quirks", deviceQuirks, "VENDOR:PRODUCT:FLAGS, such as 0bda:8153:k"},
	{"usb-storage.quirks", deviceQuirks, "VENDOR:PRODUCT:FLAGS, such as 152d:0578:u"},
	{"libata.force", `(([0-9]{1,2}(\.[0-9]{1,2})?:)?(noncq|noncqtrim|nodma|1\.5Gbps|3\.0Gbps|nolpm)(,|$))+`, "noncq, 1.5Gbps or nolpm, with \"PORT:\" in front"},
	{"acpi_enforce_resources", `lax|strict|no`, "lax, strict or no"},
	{"clocksource", `tsc|hpet|acpi_pm|kvm-clock`, "tsc, hpet or acpi_pm"},
	{"tsc", `reliable|unstable|nowatchdog`, "reliable, unstable or nowatchdog"},
	{"reboot", `acpi|bios|efi|kbd|pci|triple`, "acpi, bios, efi, kbd or pci"},
	{"transparent_hugepage", `always|madvise|never`, "always, madvise or never"},
}

// kernelNames are the names of kernelArguments.
func kernelNames() []string {
	names := make([]string, 0, len(kernelArguments))
	for _, a := range kernelArguments {
		names = append(names, a.name)
	}
	return names
}

func (c *check) kernelArguments(list []string) {
	total := 0
	seen := map[string]bool{}
	for i, text := range list {
		at := index("kernelArguments", i)
		total += len(text) + 1
		if problem := kernelProblem(text); problem != "" {
			c.add(at, "%s: %s", at, problem)
		} else if seen[text] {
			c.add(at, "%s: %q is given twice", at, text)
		}
		seen[text] = true
	}
	if total > kernelMax {
		c.add("kernelArguments", "kernelArguments hold %d bytes together, at most %d fit the kernel's command line", total, kernelMax)
	}
}

// kernelProblem says why an argument is not given to the kernel, or "".
func kernelProblem(text string) string {
	name, value, hasValue := strings.Cut(text, "=")
	for _, a := range kernelArguments {
		switch {
		case a.name != name:
		case a.values == "" && hasValue:
			return quoted(text) + " takes no value"
		case a.values == "":
			return ""
		case !regexp.MustCompile(`^(` + a.values + `)$`).MatchString(value):
			return quoted(text) + ": want " + a.name + "=" + a.form
		default:
			return ""
		}
	}
	if meant := nearest(name, kernelNames()); meant != "" {
		return quoted(text) + " is not on the list of safe arguments; did you mean \"" + meant + "\"?"
	}
	return quoted(text) + " is not on the list of safe arguments: those are " + words(kernelNames())
}

func quoted(text string) string { return "\"" + clip(text) + "\"" }

// KernelArguments are the names of the arguments that a capsule may be given, each
// with what its values look like.
func KernelArguments() (names, forms []string) {
	for _, a := range kernelArguments {
		names, forms = append(names, a.name), append(forms, a.form)
	}
	return names, forms
}

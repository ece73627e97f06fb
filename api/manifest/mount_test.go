package manifest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	capsulev1 "capsule/api/capsule/v1"
)

const mounting = `kind: Container
name: web
image: web
mounts:
  - data:/data
  - "data:/etc/web:ro"
  - {volume: config, path: /data/config, readOnly: true}
  - {volume: pictures, path: /pictures, shared: true}
  - volume: cache
    path: "/ca:che"
    copyImageContent: false
  - volume: cache
    path: //srv/./web/
    copyImageContent: true
`

func TestMounts(t *testing.T) {
	if _, err := Decode("f", strings.NewReader("kind: MicroVM\nname: web\nimage: web\nmounts: ['data:/data']\n")); err != nil {
		t.Error(err)
	}
	objs, err := Decode("f", strings.NewReader(mounting))
	if err != nil {
		t.Fatal(err)
	}
	want := []*capsulev1.Mount{
		{Volume: "data", Path: "/data", CopyImageContent: new(true)},
		{Volume: "data", Path: "/etc/web", ReadOnly: true, CopyImageContent: new(true)},
		{Volume: "config", Path: "/data/config", ReadOnly: true, CopyImageContent: new(true)},
		{Volume: "pictures", Path: "/pictures", Shared: true, CopyImageContent: new(true)},
		{Volume: "cache", Path: "/ca:che", CopyImageContent: new(false)},
		{Volume: "cache", Path: "/srv/web", CopyImageContent: new(true)},
	}
	Default(objs[0])
	if diff := cmp.Diff(want, objs[0].GetWorkload().Spec.Mounts, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	text, err := Encode(objs[0])
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/mounts.yaml", text)
	again, err := Decode("again", strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	Default(again[0])
	if diff := cmp.Diff(objs, again, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestMountDiff(t *testing.T) {
	with := func(m *capsulev1.Mount) *capsulev1.Object {
		o := wholeObject()
		o.GetWorkload().Spec.Mounts = []*capsulev1.Mount{{Volume: "a", Path: "/a"}, m}
		return o
	}
	got := Diff(with(&capsulev1.Mount{Volume: "b", Path: "/b"}), with(&capsulev1.Mount{Volume: "b", Path: "/b", Shared: true}))
	want := " mounts:\n-  - b:/b\n+  - volume: b\n+    path: /b\n+    shared: true\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMountsRefused(t *testing.T) {
	long := "/" + strings.Repeat("a", pathPartMax+1)
	many := ""
	for i := range mountsMax + 1 {
		many += fmt.Sprintf("\n- data:/data%d", i)
	}
	for _, c := range []struct{ add, want string }{
		{"mounts: [data]", `4:10: mounts[0]: "data": want "VOLUME:/PATH[:ro]"`},
		{"mounts: [/data]", `4:10: mounts[0]: "/data": want "VOLUME:/PATH[:ro]"`},
		{"mounts: ['data:']", `4:10: mounts[0]: "data:": want "VOLUME:/PATH[:ro]"`},
		{"mounts: ['data:/data:rw,shared']", `4:10: mounts[0]: "data:/data:rw,shared": "rw,shared" can't be said in short; want "VOLUME:/PATH[:ro]", or fields`},
		{"mounts: data:/data", `4:9: mounts: want a list, found "data:/data"`},
		{"mounts: [[data, /data]]", `4:10: mounts[0]: want "VOLUME:/PATH[:ro]" or fields, found a list`},
		{"mounts: ['/srv/data:/data']", `4:10: mounts[0]: "/srv/data" is no volume; a folder of the capsule can't be mounted`},
		{"mounts: ['./data:/data']", `4:10: mounts[0]: "./data" is no volume; a folder of the capsule can't be mounted`},
		{"mounts: ['Data:/data']", `4:10: mounts[0]: volume name "Data" must be lower-case letters, digits and "-", with no "-" at its ends`},
		{"mounts: ['данные:/data']", `4:10: mounts[0]: volume name "данные" must be lower-case letters`},
		{"mounts: [{path: /data}]", `4:10: mounts[0]: volume name is missing`},
		{"mounts: [{volume: data}]", `4:10: mounts[0].path is missing`},
		{"mounts: ['data:data']", `4:10: mounts[0].path: path "data" must be absolute`},
		{"mounts: ['data:/']", `4:10: mounts[0].path: a volume can't be mounted at "/", where the image is; want a folder such as "/data"`},
		{"mounts: ['data://.//']", `4:10: mounts[0].path: a volume can't be mounted at "/"`},
		{"mounts: ['data:/a/../b']", `4:10: mounts[0].path: path "/a/../b" must have no ".."`},
		{"mounts: ['data:/..']", `4:10: mounts[0].path: path "/.." must have no ".."`},
		{"mounts: ['data:/proc']", `4:10: mounts[0].path: "/proc" can't be mounted over: /proc is the kernel's`},
		{"mounts: ['data:/proc/sys/']", `4:10: mounts[0].path: "/proc/sys" can't be mounted over: /proc is the kernel's`},
		{"mounts: ['data://sys//fs/cgroup']", `4:10: mounts[0].path: "/sys/fs/cgroup" can't be mounted over: /sys is the kernel's`},
		{"mounts: ['data:/./dev']", `4:10: mounts[0].path: "/dev" can't be mounted over: /dev is the kernel's`},
		{"mounts: ['data:/dev/shm:ro']", `4:10: mounts[0].path: "/dev/shm" can't be mounted over: /dev is the kernel's`},
		{"mounts: ['data:/etc']", `4:10: mounts[0].path: "/etc" can't be mounted over: /etc/hosts is the capsule's`},
		{"mounts: ['data:/etc/resolv.conf']", `4:10: mounts[0].path: "/etc/resolv.conf" can't be mounted over: /etc/resolv.conf is the capsule's`},
		{"mounts: ['data:/etc/hosts/x']", `4:10: mounts[0].path: "/etc/hosts/x" can't be mounted over: /etc/hosts is the capsule's`},
		{"mounts: [\"data:/a\\nb\"]", `4:10: mounts[0].path: path "/a\nb" has a control character`},
		{"mounts: [\"data:/a\\0b\"]", `4:10: mounts[0].path: path has a NUL character, which no program can be given`},
		{"mounts: ['data:" + long + "']", `4:10: mounts[0].path: a name in the path is longer than 255 bytes`},
		{"mounts: ['data:" + strings.Repeat("/abc", 1024) + "']", `4:10: mounts[0].path: path is longer than 4095 bytes`},
		{"mounts: ['data:/data', 'data:/data']", `4:24: mounts[1] is at "/data", where mounts[0] is already`},
		{"mounts: ['data:/data', 'other:/./data/:ro']", `4:24: mounts[1] is at "/./data/", where mounts[0] is already`},
		{"mounts:" + many, `5:1: more than 64 mounts`},
		{"mounts: [{volume: data, path: /data, readonly: true}]", `4:38: unknown field "readonly"; did you mean "readOnly"?`},
		{"mounts: [{volume: data, mountPath: /data}]", `4:25: unknown field "mountPath"; it is called "path" here`},
		{"mounts: [{source: data, target: /data}]", `4:11: unknown field "source"; it is called "volume" here`},
		{"mounts: [{volume: data, path: /data, readOnly: yes}]", `4:48: mounts[0].readOnly: want true or false, found "yes"`},
		{"mounts: [{volume: data, path: /data, shared: 1}]", `4:46: mounts[0].shared: want true or false, found "1"`},
		{"mounts: [{volume: data, path: /data, copyImageContent: }]", `4:56: mounts[0].copyImageContent has no value`},
		{"mounts: [{volume: data, volume: data, path: /data}]", `4:25: field "volume" is given twice, first in line 4`},
	} {
		t.Run(c.add, func(t *testing.T) {
			objs, err := Decode("f", strings.NewReader(base+c.add+"\n"))
			if objs != nil || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, %v", objs, err)
			}
			if !strings.HasPrefix(err.Error(), "f:"+c.want) {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

// A client that leaves the defaults to the capsule gains nothing by odd paths.
func TestMountsOfAClient(t *testing.T) {
	for _, path := range []string{"", "data", "/", "/a/..", "/a/../../proc", "//proc", "/dev/", "/etc/./hosts", "/\xff", "/a\x7f"} {
		o := wholeObject()
		o.GetWorkload().Spec.Mounts = []*capsulev1.Mount{nil, {Volume: "data", Path: path}}
		Default(o)
		o.GetWorkload().Spec.Mounts = o.GetWorkload().Spec.Mounts[1:]
		if err := Validate(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, path := range []string{"/procs", "/proc2/x", "/etc/hosts.d", "/etcetera", "/data/proc", "/a..b", "/...", "/фото", "/a b"} {
		o := wholeObject()
		o.GetWorkload().Spec.Mounts = []*capsulev1.Mount{{Volume: "data", Path: path}}
		Default(o)
		if err := Validate(o); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

package process

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Account is who a program runs as.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	Home     string
}

func (a Account) String() string { return fmt.Sprintf("user %d:%d", a.UID, a.GID) }

// Account resolves "", "user" or "user:group", each a name or a number, by the
// image's own files. A name that they lack is refused: nobody becomes root by
// a spelling mistake. A number needs no entry; its group is then 0.
func (r FS) Account(user string) (Account, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	a := Account{Home: "/"}
	number, numeric := idNumber(name)
	found := false
	err := r.table("/etc/passwd", 6, func(row []string) {
		uid, okUID := idNumber(row[2])
		gid, okGID := idNumber(row[3])
		if found || !okUID || !okGID || row[0] != name && !(numeric && uid == number) {
			return
		}
		found = true
		name = row[0]
		a.UID, a.GID = uid, gid
		if row[5] != "" {
			a.Home = row[5]
		}
	})
	if err != nil {
		return a, fmt.Errorf("read the image's users: %w", err)
	}
	if !found {
		if !numeric {
			return a, fmt.Errorf("user %q is not in the image's /etc/passwd: %w", name, errdefs.ErrInvalidArgument)
		}
		a.UID = number
	}
	if hasGroup && group != "" {
		a.GID, err = r.group(group)
		return a, err
	}
	if found {
		a.Groups, err = r.memberships(name)
	}
	return a, err
}

// group resolves the name or number of a group.
func (r FS) group(group string) (uint32, error) {
	gid, numeric := idNumber(group)
	found := false
	err := r.table("/etc/group", 3, func(row []string) {
		if id, ok := idNumber(row[2]); ok && !found && row[0] == group {
			gid, found = id, true
		}
	})
	if err != nil {
		return 0, fmt.Errorf("read the image's groups: %w", err)
	}
	if !found && !numeric {
		return 0, fmt.Errorf("group %q is not in the image's /etc/group: %w", group, errdefs.ErrInvalidArgument)
	}
	return gid, nil
}

// groupsMax bounds supplementary groups, NGROUPS_MAX of the kernel.
const groupsMax = 65536

// memberships are the groups that list the user as a member.
func (r FS) memberships(user string) ([]uint32, error) {
	var groups []uint32
	err := r.table("/etc/group", 4, func(row []string) {
		gid, ok := idNumber(row[2])
		if !ok || len(groups) == groupsMax || contains(groups, gid) {
			return
		}
		for member := range strings.SplitSeq(row[3], ",") {
			if member == user {
				groups = append(groups, gid)
				return
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the image's groups: %w", err)
	}
	return groups, nil
}

// idNumber parses a user or group number.
func idNumber(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= math.MaxInt32
}

package lvm

import (
	"context"
	"errors"
)

// reports are what Report asks for: everything that shows how full and how well the
// group is.
var reports = [][]string{
	{"pvs", "-o", "+pv_used,pv_missing,dev_size"},
	{"vgs", "-o", "+vg_extent_size,vg_free_count,vg_missing_pv_count"},
	{"lvs", "-a", "-o", "+lv_time,seg_type,thin_id,transaction_id,lv_health_status,lv_when_full,devices"},
}

// Report is what lvm tells of the disks, the group and the volumes, as tables for
// people. What there is of it comes with the error.
func Report(ctx context.Context) ([]byte, error) {
	var text []byte
	var errs []error
	for _, args := range reports {
		out, err := command(ctx, args...)
		text = append(append(text, out...), '\n')
		errs = append(errs, err)
	}
	return text, errors.Join(errs...)
}

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// verify walks the pages of a bbolt file without mapping it. bbolt itself
// trusts its file: a short one kills the process with SIGBUS, a zeroed page can
// make it walk in circles. Layout: go.etcd.io/bbolt, internal/common (meta.go,
// page.go, bucket.go), all little-endian here.
func verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := newestMeta(f, info.Size())
	if err != nil {
		return err
	}
	if need := int64(m.pages) * m.pageSize; m.pages > 1<<40 || info.Size() < need {
		return fmt.Errorf("file has %d bytes, its pages need %d", info.Size(), need)
	}
	w := &walk{file: f, meta: m, seen: map[uint64]bool{}}
	if err := w.freelist(); err != nil {
		return err
	}
	return w.tree(m.root, 0)
}

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHead = 16
	pageElem = 16
	metaSize = 64 // with its checksum in the last 8 bytes

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketLeaf   = 0x01

	noFreelist = ^uint64(0)
	depthMax   = 64
)

type meta struct {
	pageSize                    int64
	root, freelist, pages, txid uint64
}

// newestMeta is the meta page that bbolt would take: the valid one with the
// higher transaction id. One torn meta page is survived that way.
func newestMeta(r io.ReaderAt, size int64) (meta, error) {
	var best meta
	found := false
	head := make([]byte, pageHead+metaSize)
	take := func(off int64) {
		if off+int64(len(head)) > size {
			return
		}
		if _, err := r.ReadAt(head, off); err != nil {
			return
		}
		if m, ok := parseMeta(head[pageHead:]); ok && (!found || m.txid > best.txid) {
			best, found = m, true
		}
	}
	take(0)
	if found {
		take(best.pageSize)
	} else {
		for pageSize := int64(1024); pageSize <= 64<<10; pageSize *= 2 {
			take(pageSize)
		}
	}
	if !found {
		return meta{}, errors.New("no valid meta page")
	}
	return best, nil
}

func parseMeta(b []byte) (meta, bool) {
	le := binary.LittleEndian
	sum := fnv.New64a()
	sum.Write(b[:metaSize-8])
	if le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion || le.Uint64(b[metaSize-8:]) != sum.Sum64() {
		return meta{}, false
	}
	m := meta{
		pageSize: int64(le.Uint32(b[8:])),
		root:     le.Uint64(b[16:]),
		freelist: le.Uint64(b[32:]),
		pages:    le.Uint64(b[40:]),
		txid:     le.Uint64(b[48:]),
	}
	return m, m.pageSize >= 512 && m.pageSize <= 1<<20
}

// walk visits every page in use once.
type walk struct {
	file io.ReaderAt
	meta meta
	seen map[uint64]bool // pages in use or free
}

// page reads page id with its overflow and claims it.
func (w *walk) page(id uint64) (data []byte, flags uint16, count int, err error) {
	if id < 2 || id >= w.meta.pages {
		return nil, 0, 0, fmt.Errorf("page %d of %d is out of range", id, w.meta.pages)
	}
	head := make([]byte, pageHead)
	if _, err := w.file.ReadAt(head, int64(id)*w.meta.pageSize); err != nil {
		return nil, 0, 0, fmt.Errorf("read page %d: %w", id, err)
	}
	le := binary.LittleEndian
	overflow := uint64(le.Uint32(head[12:]))
	if self := le.Uint64(head); self != id || id+overflow >= w.meta.pages {
		return nil, 0, 0, fmt.Errorf("page %d calls itself %d with %d more", id, self, overflow)
	}
	for p := id; p <= id+overflow; p++ {
		if w.seen[p] {
			return nil, 0, 0, fmt.Errorf("page %d is used twice", p)
		}
		w.seen[p] = true
	}
	data = make([]byte, int64(overflow+1)*w.meta.pageSize)
	if _, err := w.file.ReadAt(data, int64(id)*w.meta.pageSize); err != nil {
		return nil, 0, 0, fmt.Errorf("read page %d: %w", id, err)
	}
	return data, le.Uint16(head[8:]), int(le.Uint16(head[10:])), nil
}

func (w *walk) freelist() error {
	if w.meta.freelist == noFreelist {
		return nil
	}
	data, flags, count, err := w.page(w.meta.freelist)
	if err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	if flags != freelistPage {
		return fmt.Errorf("free list: page %d has flags %#x", w.meta.freelist, flags)
	}
	ids := data[pageHead:]
	if count == 0xFFFF { // the real count is the first entry
		count = int(binary.LittleEndian.Uint64(ids))
		ids = ids[8:]
	}
	if count < 0 || count > len(ids)/8 {
		return fmt.Errorf("free list: %d entries do not fit", count)
	}
	for i := range count {
		id := binary.LittleEndian.Uint64(ids[i*8:])
		if id < 2 || id >= w.meta.pages || w.seen[id] {
			return fmt.Errorf("free list: page %d is out of range or used", id)
		}
		w.seen[id] = true
	}
	return nil
}

// tree checks the page id and all below it.
func (w *walk) tree(id uint64, depth int) error {
	if depth > depthMax {
		return errors.New("tree is too deep")
	}
	data, flags, count, err := w.page(id)
	if err != nil {
		return err
	}
	if err := w.elements(data, flags, count, depth); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the entries of one page, or of a bucket held inline.
func (w *walk) elements(data []byte, flags uint16, count, depth int) error {
	if flags != branchPage && flags != leafPage {
		return fmt.Errorf("flags are %#x", flags)
	}
	if flags == branchPage && count == 0 {
		return errors.New("branch is empty")
	}
	if pageHead+count*pageElem > len(data) {
		return fmt.Errorf("%d entries do not fit", count)
	}
	var before []byte
	for i := range count {
		at := pageHead + i*pageElem
		var key []byte
		var err error
		if flags == branchPage {
			key, err = w.branch(data, at, depth)
		} else {
			key, err = w.leaf(data, at, depth)
		}
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(before, key) >= 0 {
			return fmt.Errorf("entry %d is out of order", i)
		}
		before = key
	}
	return nil
}

func (w *walk) branch(data []byte, at, depth int) ([]byte, error) {
	le := binary.LittleEndian
	key, err := cut(data, at, le.Uint32(data[at:]), le.Uint32(data[at+4:]))
	if err != nil {
		return nil, err
	}
	return key, w.tree(le.Uint64(data[at+8:]), depth+1)
}

func (w *walk) leaf(data []byte, at, depth int) ([]byte, error) {
	le := binary.LittleEndian
	pos, ksize, vsize := le.Uint32(data[at+4:]), le.Uint32(data[at+8:]), le.Uint32(data[at+12:])
	key, err := cut(data, at, pos, ksize)
	if err != nil {
		return nil, err
	}
	value, err := cut(data, at, pos+ksize, vsize)
	if err != nil || le.Uint32(data[at:])&bucketLeaf == 0 {
		return key, err
	}
	if len(value) < 16 {
		return nil, fmt.Errorf("bucket %q is short", key)
	}
	root, inline := le.Uint64(value), value[16:]
	if root != 0 {
		err = w.tree(root, depth+1)
	} else if len(inline) < pageHead {
		err = errors.New("short")
	} else {
		err = w.elements(inline, le.Uint16(inline[8:]), int(le.Uint16(inline[10:])), depth+1)
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %q: %w", key, err)
	}
	return key, nil
}

// cut is size bytes at pos after the element at, when inside the page.
func cut(data []byte, at int, pos, size uint32) ([]byte, error) {
	from := int64(at) + int64(pos)
	if from < pageHead || from+int64(size) > int64(len(data)) {
		return nil, errors.New("entry points outside its page")
	}
	return data[from : from+int64(size)], nil
}

package network

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// bufferBytes holds one transaction, and the kernel's answers to it: one per
// rule, under 1 KiB of kernel memory each.
const bufferBytes = 16 << 20

// applyRules swaps the rules of the whole table in one transaction.
func applyRules(chains []chain) error {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(bufferBytes), c.SetReadBuffer(bufferBytes))
	}))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	// Rules may jump to a chain only after it exists.
	added := make([]*nftables.Chain, len(chains))
	for i, c := range chains {
		added[i] = conn.AddChain(kernelChain(table, c))
	}
	conn.FlushTable(table)
	for i, c := range chains {
		for _, r := range c.Rules {
			k := &nftables.Rule{Table: table, Chain: added[i]}
			for _, t := range r {
				exprs, err := kernelTerm(conn, table, t)
				if err != nil {
					return fmt.Errorf("make set of rule %q: %w", t.text, err)
				}
				k.Exprs = append(k.Exprs, exprs...)
			}
			conn.AddRule(k)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replace rules of nftables table %q: %w", tableName, err)
	}
	return nil
}

// elementsMax bounds one netlink attribute.
const elementsMax = 500

// kernelTerm adds the set of a term, if it has one, and returns its expressions.
func kernelTerm(conn *nftables.Conn, table *nftables.Table, t term) ([]expr.Any, error) {
	if t.set == nil {
		return t.exprs, nil
	}
	s := &nftables.Set{Table: table, Anonymous: true, Constant: true, Interval: t.set.interval, KeyType: t.set.key}
	if t.set.data != nil {
		s.IsMap, s.DataType = true, *t.set.data
	}
	if err := conn.AddSet(s, nil); err != nil {
		return nil, err
	}
	// It may be filled until a rule uses it; the package takes no part for yes.
	s.Anonymous = false
	for part := range slices.Chunk(t.set.elements, elementsMax) {
		if err := conn.SetAddElements(s, part); err != nil {
			return nil, err
		}
	}
	var exprs []expr.Any
	for _, e := range t.exprs {
		if lookup, ok := e.(*expr.Lookup); ok {
			l := *lookup
			l.SetID, l.SetName = s.ID, s.Name
			e = &l
		}
		exprs = append(exprs, e)
	}
	return exprs, nil
}

func kernelChain(table *nftables.Table, c chain) *nftables.Chain {
	k := &nftables.Chain{Name: c.Name, Table: table}
	if c.Hook == nil {
		return k
	}
	policy := nftables.ChainPolicyAccept
	if c.Drop {
		policy = nftables.ChainPolicyDrop
	}
	k.Type, k.Hooknum, k.Priority, k.Policy = c.Type, c.Hook, &c.Priority, &policy
	return k
}

// tableExists says whether a daemon before this one made the table.
func tableExists() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tableName {
			return true, nil
		}
	}
	return false, nil
}

package network

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
)

// Link is the capsule's end of a workload's link, by name. What the workload sends is
// received there.
func (n *Network) Link(workload string) (string, error) {
	a, held, err := n.lookup(workload)
	if err != nil {
		return "", err
	}
	if !held {
		return "", fmt.Errorf("workload %q has no link of its own: it is on the capsule's network, has none, or never ran: %w", workload, errdefs.ErrFailedPrecondition)
	}
	return n.hostLink(a), nil
}

// Rules is the table in the syntax of nft(8) as it is to be, and below it how many rules
// each chain has in the kernel.
func (n *Network) Rules() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	held, err := n.held()
	if err != nil {
		return "", fmt.Errorf("read the addresses of workloads: %w", err)
	}
	chains := ruleset(n.desired(n.published, held))
	var b strings.Builder
	b.WriteString(render(chains))
	conn, err := nftables.New()
	if err != nil {
		return b.String(), fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	for _, c := range chains {
		rules, err := conn.GetRules(table, &nftables.Chain{Name: c.Name, Table: table})
		if err != nil {
			return b.String(), fmt.Errorf("read chain %q of the kernel: %w", c.Name, err)
		}
		fmt.Fprintf(&b, "# kernel: chain %s has %d rules of %d\n", c.Name, len(rules), len(c.Rules))
	}
	return b.String(), nil
}

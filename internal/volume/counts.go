package volume

import "sync"

// counts counts by name.
type counts struct {
	mu sync.Mutex
	of map[string]int
}

// add counts one more, and gives how many that are.
func (c *counts) add(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]int{}
	}
	c.of[name]++
	return c.of[name]
}

// drop counts one less, and gives how many are left.
func (c *counts) drop(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[name] <= 1 {
		delete(c.of, name)
		return 0
	}
	c.of[name]--
	return c.of[name]
}

func (c *counts) clear(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, name)
}

func (c *counts) has(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[name] > 0
}

package mdns

import (
	"testing"

	"capsule/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// Package qemu speaks to QEMU: to one that runs by its machine protocol (QMP),
// and to the processor, by a probe whether guests really run on KVM here. It
// starts no machine of anybody.
package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// commandMax bounds one command, and the greeting.
	commandMax = 10 * time.Second
	// messageMax bytes of one line from QEMU; the longest answers to what is
	// asked here have some thousands.
	messageMax = 1 << 20
	// eventsMax that wait to be read; QEMU itself lets a guest cause one of a
	// kind in a second.
	eventsMax = 64
)

// Monitor is a connection to a running QEMU. QEMU serves one at a time; the
// next one waits for its greeting until this one is closed.
type Monitor struct {
	conn   net.Conn
	in     *bufio.Scanner
	events chan Event

	writing sync.Mutex

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan message
	err     error // why the connection ended
}

// Event is something that QEMU tells unasked, such as "SHUTDOWN".
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// message is any line from QEMU.
type message struct {
	Greeting  json.RawMessage `json:"QMP"`
	ID        uint64          `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// command is a line to QEMU.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// Dial connects to the QMP socket at path.
func Dial(ctx context.Context, path string) (*Monitor, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU: %w", err)
	}
	return NewMonitor(ctx, conn)
}

// NewMonitor takes over a connection whose other end is QEMU, waits for the
// greeting and makes it ready for commands. The connection is closed on error.
func NewMonitor(ctx context.Context, conn net.Conn) (*Monitor, error) {
	m := &Monitor{conn: conn, in: bufio.NewScanner(conn), events: make(chan Event, eventsMax), waiting: map[uint64]chan message{}}
	m.in.Buffer(nil, messageMax)
	if err := m.greet(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("greet QEMU: %w", err), conn.Close())
	}
	go m.read()
	if err := m.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

func (m *Monitor) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandMax)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetReadDeadline(time.Unix(1, 0)) })
	hello, err := m.next()
	if !stop() {
		return ctx.Err()
	}
	if err == nil && hello.Greeting == nil {
		err = errors.New("it does not speak QMP")
	}
	return err
}

// next reads one line.
func (m *Monitor) next() (message, error) {
	var msg message
	if !m.in.Scan() {
		if err := m.in.Err(); err != nil {
			return msg, err
		}
		return msg, io.EOF
	}
	return msg, json.Unmarshal(m.in.Bytes(), &msg)
}

// read hands out what QEMU says until the connection ends.
func (m *Monitor) read() {
	defer close(m.events)
	for {
		msg, err := m.next()
		if err != nil {
			m.end(err)
			return
		}
		if msg.Event != "" {
			m.tell(msg)
			continue
		}
		m.mu.Lock()
		answer := m.waiting[msg.ID]
		delete(m.waiting, msg.ID)
		m.mu.Unlock()
		if answer != nil { // else its caller has gone
			answer <- msg
		}
	}
}

// tell queues an event; a full queue loses its oldest one.
func (m *Monitor) tell(msg message) {
	e := Event{Name: msg.Event, Data: msg.Data, Time: time.Unix(msg.Timestamp.Seconds, msg.Timestamp.Microseconds*1000)}
	for {
		select {
		case m.events <- e:
			return
		default:
		}
		select {
		case <-m.events:
		default:
		}
	}
}

// end lets all who wait for an answer go.
func (m *Monitor) end(err error) {
	if errors.Is(err, io.EOF) {
		err = errors.New("QEMU closed the connection")
	}
	_ = m.conn.Close() // it is of no use any more
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	for _, answer := range m.waiting {
		close(answer)
	}
	m.waiting = nil
}

// Do runs one command, such as "query-status", and unmarshals its answer into
// result. arguments and result may be nil. What QEMU refuses is an *Error.
func (m *Monitor) Do(ctx context.Context, execute string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandMax)
	defer cancel()
	msg, err := m.ask(ctx, command{Execute: execute, Arguments: arguments})
	if err == nil && msg.Error != nil {
		err = msg.Error
	}
	if err == nil && result != nil {
		err = json.Unmarshal(msg.Return, result)
	}
	if err != nil {
		return fmt.Errorf("ask QEMU to %s: %w", execute, err)
	}
	return nil
}

func (m *Monitor) ask(ctx context.Context, c command) (message, error) {
	answer := make(chan message, 1)
	m.mu.Lock()
	if m.waiting == nil {
		defer m.mu.Unlock()
		return message{}, m.err
	}
	m.last++
	c.ID = m.last
	m.waiting[c.ID] = answer
	m.mu.Unlock()
	if err := m.write(ctx, c); err != nil {
		m.forget(c.ID)
		return message{}, err
	}
	select {
	case msg, ok := <-answer:
		if !ok {
			return message{}, m.Err()
		}
		return msg, nil
	case <-ctx.Done():
		m.forget(c.ID)
		return message{}, ctx.Err()
	}
}

func (m *Monitor) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, id)
}

// write sends a whole line, or closes the connection: what comes after a piece
// of one would not be understood.
func (m *Monitor) write(ctx context.Context, c command) error {
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	deadline, _ := ctx.Deadline() // always there: commandMax
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return errors.Join(err, m.conn.Close())
	}
	return nil
}

// Events are what QEMU tells unasked. When nobody reads them the oldest are
// lost. The channel is closed when the connection ends: Err says why.
func (m *Monitor) Events() <-chan Event { return m.events }

// Err is why the connection ended, nil while it lives.
func (m *Monitor) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Close ends the connection. QEMU goes on.
func (m *Monitor) Close() error { return m.conn.Close() }

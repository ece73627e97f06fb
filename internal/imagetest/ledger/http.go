package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// answerMax is of an answer, in bytes.
const answerMax = 64 << 10

// Handler has a ledger written and checked over HTTP: POST /append gives the record once
// it is on the disk, GET /check?at=NUMBER what the disk holds. failed is told of the
// first error, which ends the writer's use.
func Handler(w *Writer, failed func(error)) http.Handler {
	mux := http.NewServeMux()
	answer := func(out http.ResponseWriter, v any, err error) {
		if err != nil {
			http.Error(out, err.Error(), http.StatusInternalServerError)
			failed(err)
			return
		}
		out.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(out).Encode(v) // whoever went away asks again
	}
	mux.HandleFunc("POST /append", func(out http.ResponseWriter, _ *http.Request) {
		e, err := w.Append()
		answer(out, e, err)
	})
	mux.HandleFunc("GET /check", func(out http.ResponseWriter, r *http.Request) {
		at, err := strconv.ParseUint(r.FormValue("at"), 10, 64)
		if err != nil {
			http.Error(out, "at: "+err.Error(), http.StatusBadRequest)
			return
		}
		s, err := w.Check(at)
		answer(out, s, err)
	})
	return mux
}

// Client asks a Handler.
type Client struct {
	URL  string // "http://host:port"
	HTTP *http.Client
}

// Append has a record written, and gives it: that is its acknowledgement.
func (c Client) Append(ctx context.Context) (e Entry, err error) {
	err = c.ask(ctx, http.MethodPost, "/append", &e)
	return e, err
}

// Check has the ledger read from its disk.
func (c Client) Check(ctx context.Context, at uint64) (s State, err error) {
	err = c.ask(ctx, http.MethodGet, fmt.Sprintf("/check?at=%d", at), &s)
	return s, err
}

func (c Client) ask(ctx context.Context, method, path string, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, c.URL+path, nil)
	if err != nil {
		return err
	}
	answer, err := c.HTTP.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, answerMax))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

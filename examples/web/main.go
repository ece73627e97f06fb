// Command web is the program of the example image: a web server that greets,
// ends well on SIGTERM, and can ask itself so that an exec has something to run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const answerMax = 5 * time.Second

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	address := flag.String("listen", ":8080", "address to serve")
	page := flag.String("get", "", "print this page, of the server that runs beside it unless it begins with http://, and end")
	flag.Parse()
	if *page != "" {
		if err := get(*address, *page); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := serve(*address); err != nil {
		log.Fatal(err)
	}
}

func serve(address string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	greeting := os.Getenv("GREETING")
	if greeting == "" {
		greeting = "Hello"
	}
	srv := &http.Server{Addr: address, ReadHeaderTimeout: answerMax}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Printf("%s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintf(w, "%s, %s.\n", greeting, host)
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	log.Printf("listening on %s", address)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerMax)
	defer cancel()
	return errors.Join(srv.Shutdown(ctx), ignoreClosed(<-ended))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// get prints a page, of the server at an address of this machine when it is a path.
func get(address, page string) error {
	if strings.HasPrefix(page, "/") {
		page = "http://127.0.0.1" + address + page
	}
	client := &http.Client{Timeout: answerMax}
	answer, err := client.Get(page)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// dialLimit bounds name look-ups and connections.
const dialLimit = time.Minute

// serveHTTP [ADDRESS] [BODY] answers every request with the body and the
// peer's address, "/env/NAME" with a variable, "/file/PATH" with a file.
func serveHTTP(args []string) int {
	body := argument(args, 1, "hello")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s\n", body, r.RemoteAddr)
	})
	http.HandleFunc("/env/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, os.Getenv(strings.TrimPrefix(r.URL.Path, "/env/")))
	})
	http.Handle("/file/", http.StripPrefix("/file/", http.FileServer(http.Dir("/"))))
	listener, err := net.Listen("tcp", argument(args, 0, ":8080"))
	if err != nil {
		return fail(err)
	}
	fmt.Println("listening", listener.Addr())
	return fail(http.Serve(listener, nil))
}

// serveUDP [ADDRESS] [NAME] sends each packet back, behind the name and a space if
// there is one.
func serveUDP(args []string) int {
	prefix := ""
	if name := argument(args, 1, ""); name != "" {
		prefix = name + " "
	}
	conn, err := net.ListenPacket("udp", argument(args, 0, ":8080"))
	if err != nil {
		return fail(err)
	}
	fmt.Println("listening", conn.LocalAddr())
	packet := make([]byte, 64<<10)
	for {
		n, peer, err := conn.ReadFrom(packet)
		if err != nil {
			return fail(err)
		}
		if _, err := conn.WriteTo(append([]byte(prefix), packet[:n]...), peer); err != nil {
			return fail(err)
		}
	}
}

// bind ADDRESS listens on TCP and goes on.
func bind(args []string) int {
	listener, err := net.Listen("tcp", argument(args, 0, ":80"))
	if err != nil {
		return fail(err)
	}
	fmt.Println("bound", listener.Addr())
	return 0
}

// dial NETWORK ADDRESS [TEXT] connects, sends the text if there is one, and
// prints what comes back; HTTP is spoken for the network "http".
func dial(args []string) int {
	network, address := argument(args, 0, "tcp"), argument(args, 1, "")
	if network == "http" {
		client := http.Client{Timeout: dialLimit}
		resp, err := client.Get("http://" + address)
		if err != nil {
			return fail(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
			return fail(err)
		}
		return 0
	}
	conn, err := net.DialTimeout(network, address, dialLimit)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = conn.Close() }()
	fmt.Println("connected", conn.RemoteAddr())
	if len(args) < 3 {
		return 0
	}
	if err := conn.SetDeadline(time.Now().Add(dialLimit)); err != nil {
		return fail(err)
	}
	if _, err := io.WriteString(conn, args[2]); err != nil {
		return fail(err)
	}
	answer := make([]byte, 64<<10)
	n, err := conn.Read(answer)
	if err != nil {
		return fail(err)
	}
	fmt.Printf("%s\n", answer[:n])
	return 0
}

// lookup NAME… prints the addresses of names.
func lookup(args []string) int {
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	defer cancel()
	for _, name := range args {
		addresses, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil {
			return fail(err)
		}
		fmt.Println(name, strings.Join(addresses, " "))
	}
	return 0
}

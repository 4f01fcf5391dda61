// What runs in the pods that the cluster itself needs or is tried out with. It stays a few MB, since every pod has one.
//
//	pod pause            holds a pod's namespaces until it is told to end
//	pod serve            an HTTP server on port 8080 that tells the variable VERSION and the file /config/value
//	pod get HOST:PORT    what a GET of / answers
//	pod lookup HOST      the addresses of a name
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	command, argument := "", ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	if len(os.Args) > 2 {
		argument = os.Args[2]
	}
	if err := run(command, argument); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command, argument string) error {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch command {
	case "pause":
		<-ended.Done()
		return nil
	case "serve":
		return serve(ended)
	case "get":
		return get(ended, argument)
	case "lookup":
		addresses, err := net.DefaultResolver.LookupHost(ended, argument)
		fmt.Println(strings.Join(addresses, " "))
		return err
	}
	return fmt.Errorf("pause, serve, get HOST:PORT or lookup HOST, not %q", command)
}

func serve(ended context.Context) error {
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second}
	server.Handler = http.HandlerFunc(func(response http.ResponseWriter, _ *http.Request) {
		config, err := os.ReadFile("/config/value")
		if err != nil && !os.IsNotExist(err) {
			http.Error(response, err.Error(), http.StatusInternalServerError)
			return
		}
		host, _ := os.Hostname()
		fmt.Fprintf(response, "host=%s version=%s config=%s\n", host, os.Getenv("VERSION"), config)
	})
	context.AfterFunc(ended, func() { _ = server.Close() })
	fmt.Println("listening on :8080")
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func get(ended context.Context, address string) error {
	ctx, stop := context.WithTimeout(ended, 10*time.Second)
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", address, response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

// Package dns is the cluster's DNS server: A records of Services and of the named pods behind headless Services, over
// UDP. It answers from informers, so it is never behind by more than a watch event. It knows no name outside the cluster.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	zone       = ".svc.cluster.local."
	ttlSeconds = 5
	// What fits a UDP answer without EDNS, at 16 bytes a compressed record.
	maxRecords = 28
)

// NewCommand makes the command that serves until a signal ends it.
func NewCommand() *cobra.Command {
	var kubeconfig, listen string
	command := &cobra.Command{
		Use:          "dns",
		Short:        "DNS of Services and of pods behind headless Services",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			records, err := watchRecords(ctx, kubeconfig)
			if err != nil {
				return err
			}
			return serve(ctx, listen, records)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&listen, "listen", "127.0.0.1:53", "UDP address")
	_ = command.MarkFlagRequired("kubeconfig")
	return command
}

// records answers what a name stands for.
type records struct {
	services  corelisters.ServiceLister
	endpoints discoverylisters.EndpointSliceLister
}

func watchRecords(ctx context.Context, kubeconfig string) (*records, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	found := &records{
		services:  factory.Core().V1().Services().Lister(),
		endpoints: factory.Discovery().V1().EndpointSlices().Lister(),
	}
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return nil, fmt.Errorf("no list of %v", kind)
		}
	}
	return found, nil
}

// lookup gives the IPv4 addresses of a name that ends with a dot, and whether the name exists at all.
func (r *records) lookup(name string) (addresses []net.IP, exists bool) {
	inner, inZone := strings.CutSuffix(strings.ToLower(name), zone)
	if !inZone {
		return nil, false
	}
	labelsOf := strings.Split(inner, ".")
	host := ""
	if len(labelsOf) == 3 {
		host, labelsOf = labelsOf[0], labelsOf[1:]
	}
	if len(labelsOf) != 2 {
		return nil, false
	}
	service, err := r.services.Services(labelsOf[1]).Get(labelsOf[0])
	if err != nil {
		return nil, false
	}
	if host == "" && service.Spec.ClusterIP != corev1.ClusterIPNone {
		return addIP(nil, service.Spec.ClusterIP), true
	}
	slices, err := r.endpoints.EndpointSlices(service.Namespace).List(
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service.Name}))
	if err != nil {
		return nil, false
	}
	for _, slice := range slices {
		for _, endpoint := range slice.Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
			named := host == "" || endpoint.Hostname != nil && *endpoint.Hostname == host
			if !named || !ready && !service.Spec.PublishNotReadyAddresses {
				continue
			}
			for _, address := range endpoint.Addresses {
				addresses = addIP(addresses, address)
			}
		}
	}
	return addresses, host == "" || len(addresses) > 0
}

func addIP(addresses []net.IP, text string) []net.IP {
	if ip := net.ParseIP(text).To4(); ip != nil && len(addresses) < maxRecords {
		return append(addresses, ip)
	}
	return addresses
}

// serve answers until the context ends.
func serve(ctx context.Context, listen string, found *records) error {
	socket, err := net.ListenPacket("udp", listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Now()) })
	defer socket.Close()
	buffer := make([]byte, 4096)
	for {
		size, from, err := socket.ReadFrom(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			var network net.Error
			if errors.As(err, &network) {
				continue
			}
			return err
		}
		if reply, err := answer(buffer[:size], found); err == nil {
			_, _ = socket.WriteTo(reply, from)
		}
	}
}

// answer makes the reply to one query. A query that cannot be parsed gets none.
func answer(query []byte, found *records) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	addresses, exists := found.lookup(question.Name.String())
	reply := dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	if !exists {
		reply.RCode = dnsmessage.RCodeNameError
	}
	builder := dnsmessage.NewBuilder(nil, reply)
	builder.EnableCompression()
	if err := builder.StartQuestions(); err != nil {
		return nil, err
	}
	if err := builder.Question(question); err != nil {
		return nil, err
	}
	if err := builder.StartAnswers(); err != nil {
		return nil, err
	}
	// A name that exists has no AAAA record: no error and no answer.
	if question.Type == dnsmessage.TypeA {
		for _, address := range addresses {
			head := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: ttlSeconds}
			if err := builder.AResource(head, dnsmessage.AResource{A: [4]byte(address)}); err != nil {
				return nil, err
			}
		}
	}
	return builder.Finish()
}

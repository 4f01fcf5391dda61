package dns

import (
	"net"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

func service(name, clusterIP string, publishNotReady bool) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: clusterIP, PublishNotReadyAddresses: publishNotReady},
	}
}

func endpoint(host, address string, ready bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Hostname:   &host,
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready},
	}
}

func slice(service string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	labels := map[string]string{discoveryv1.LabelServiceName: service}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: service + "-1", Labels: labels},
		Endpoints:  endpoints,
	}
}

func newRecords(t *testing.T, objects ...any) *records {
	t.Helper()
	byNamespace := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
	services := cache.NewIndexer(cache.MetaNamespaceKeyFunc, byNamespace)
	endpoints := cache.NewIndexer(cache.MetaNamespaceKeyFunc, byNamespace)
	for _, object := range objects {
		indexer := services
		if _, isSlice := object.(*discoveryv1.EndpointSlice); isSlice {
			indexer = endpoints
		}
		if err := indexer.Add(object); err != nil {
			t.Fatal(err)
		}
	}
	return &records{
		services:  corelisters.NewServiceLister(services),
		endpoints: discoverylisters.NewEndpointSliceLister(endpoints),
	}
}

func ask(t *testing.T, found *records, name string, kind dnsmessage.Type) (dnsmessage.RCode, []string) {
	t.Helper()
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	packed, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	packed, err = answer(packed, found)
	if err != nil {
		t.Fatal(err)
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	if reply.ID != 7 || !reply.Response || len(reply.Questions) != 1 {
		t.Errorf("not the reply to the query: %v", reply.GoString())
	}
	var addresses []string
	for _, record := range reply.Answers {
		body := record.Body.(*dnsmessage.AResource)
		addresses = append(addresses, net.IP(body.A[:]).String())
	}
	slices.Sort(addresses)
	return reply.RCode, addresses
}

func TestNames(t *testing.T) {
	found := newRecords(t,
		service("plain", "10.96.0.7", false),
		service("headless", corev1.ClusterIPNone, false),
		slice("headless", endpoint("a-0", "10.244.0.3", true), endpoint("a-1", "10.244.0.4", false)),
		service("early", corev1.ClusterIPNone, true),
		slice("early", endpoint("b-0", "10.244.0.5", false)),
	)
	const zone = ".ns.svc.cluster.local."
	missing, fine := dnsmessage.RCodeNameError, dnsmessage.RCodeSuccess
	for _, test := range []struct {
		name  string
		kind  dnsmessage.Type
		code  dnsmessage.RCode
		found []string
	}{
		{"plain" + zone, dnsmessage.TypeA, fine, []string{"10.96.0.7"}},
		{"PLAIN" + zone, dnsmessage.TypeA, fine, []string{"10.96.0.7"}},
		{"plain" + zone, dnsmessage.TypeAAAA, fine, nil},
		{"headless" + zone, dnsmessage.TypeA, fine, []string{"10.244.0.3"}},
		{"a-0.headless" + zone, dnsmessage.TypeA, fine, []string{"10.244.0.3"}},
		{"a-1.headless" + zone, dnsmessage.TypeA, missing, nil},
		{"b-0.early" + zone, dnsmessage.TypeA, fine, []string{"10.244.0.5"}},
		{"nothing" + zone, dnsmessage.TypeA, missing, nil},
		{"plain.other.svc.cluster.local.", dnsmessage.TypeA, missing, nil},
		{"x.y.plain" + zone, dnsmessage.TypeA, missing, nil},
		{"example.com.", dnsmessage.TypeA, missing, nil},
	} {
		code, addresses := ask(t, found, test.name, test.kind)
		if code != test.code || !slices.Equal(addresses, test.found) {
			t.Errorf("%s %v: %v %v, want %v %v", test.name, test.kind, code, addresses, test.code, test.found)
		}
	}
}

func TestAnAnswerFitsADatagram(t *testing.T) {
	var many []discoveryv1.Endpoint
	for i := range 100 {
		many = append(many, endpoint("", net.IPv4(10, 244, 0, byte(i)).String(), true))
	}
	found := newRecords(t, service("many", corev1.ClusterIPNone, false), slice("many", many...))
	if _, addresses := ask(t, found, "many.ns.svc.cluster.local.", dnsmessage.TypeA); len(addresses) != maxRecords {
		t.Errorf("%d addresses", len(addresses))
	}
}

func TestGarbageGetsNoAnswer(t *testing.T) {
	if _, err := answer([]byte("garbage"), newRecords(t)); err == nil {
		t.Error("garbage was answered")
	}
}

// One executable that is every part of a small Kubernetes cluster: Kubernetes' own components, kubectl, etcd, and a
// DNS server. The first argument, or the name it was started by, says which.
//
// They are one program because they share most of their packages: one link and one file instead of eight.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"disagg.dev/tests/cluster/dns"
	"disagg.dev/tests/cluster/etcd"
)

// parts maps the name of each part to its main function, which gives the exit status.
var parts = map[string]func() int{
	"kube-apiserver":          run(apiserver.NewAPIServerCommand),
	"kube-controller-manager": run(controllermanager.NewControllerManagerCommand),
	"kube-scheduler":          run(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubelet":                 run(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kube-proxy":              run(proxy.NewProxyCommand),
	"kubectl":                 runKubectl,
	"etcd":                    run(etcd.NewCommand),
	"dns":                     run(dns.NewCommand),
}

func main() {
	name := filepath.Base(os.Args[0])
	part, found := parts[name]
	if !found && len(os.Args) > 1 {
		name = os.Args[1]
		part, found = parts[name]
		os.Args = os.Args[1:]
	}
	if !found {
		names := slices.Sorted(maps.Keys(parts))
		fmt.Fprintf(os.Stderr, "the first argument must be one of: %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	os.Exit(part())
}

// run makes a main function of a command's constructor, which is only called when its part is wanted: constructors
// register flags and metrics.
func run(newCommand func() *cobra.Command) func() int {
	return func() int { return cli.Run(newCommand()) }
}

// runKubectl prints errors the way kubectl does, which differs from the components.
func runKubectl() int {
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // exits
	}
	return 0
}

// controlplane is one program that holds a Kubernetes: its first argument names the part, the rest are that part's
// own arguments. tests/cluster runs the control plane alone, without root and without pods that run; tests/e2e runs
// the parts of a node beside it (node_linux.go).
package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// parts by name: each runs until it ends, and gives the exit code.
var parts = map[string]func() int{
	"etcd":                    func() int { etcdmain.Main(os.Args); return 0 },
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllers.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kubectl": func() int {
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			return fail(err)
		}
		return 0
	},
}

func main() {
	if len(os.Args) < 2 || parts[os.Args[1]] == nil {
		names := strings.Join(slices.Sorted(maps.Keys(parts)), "|")
		os.Exit(fail("usage: controlplane " + names + " [arguments]"))
	}
	run := parts[os.Args[1]]
	os.Args = os.Args[1:]
	os.Exit(run())
}

func fail(why any) int {
	fmt.Fprintln(os.Stderr, why)
	return 2
}

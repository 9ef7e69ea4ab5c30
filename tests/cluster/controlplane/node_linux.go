package main

import (
	"context"
	"os"

	"k8s.io/component-base/cli"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// The parts of a node; they build on Linux alone.
func init() {
	parts["kubelet"] = func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) }
	parts["kube-proxy"] = func() int { return cli.Run(proxy.NewProxyCommand()) }
	parts["provisioner"] = func() int { return runProvisioner(os.Args[1:]) }
	parts["remove-pods"] = func() int { return removePods(os.Args[1:]) }
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// removePods stops and removes every pod of one containerd, its containers and its network: remove-pods SOCKET.
func removePods(args []string) int {
	if len(args) != 1 {
		return fail("usage: controlplane remove-pods /absolute/path/of.sock")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fail(err)
	}
	defer connection.Close()
	runtime := cri.NewRuntimeServiceClient(connection)
	list, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fail(err)
	}
	failures := make([]error, len(list.Items))
	var all sync.WaitGroup
	for i, pod := range list.Items {
		all.Go(func() {
			_, failures[i] = runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.Id})
			if failures[i] == nil {
				_, failures[i] = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.Id})
			}
		})
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return fail(err)
	}
	fmt.Printf("removed %d pods\n", len(list.Items))
	return 0
}

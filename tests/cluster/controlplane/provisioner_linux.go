package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	helpers "k8s.io/component-helpers/storage/volume"
)

const (
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	everyPass     = 300 * time.Millisecond
)

// provisioner makes volumes of a size that holds: an XFS file system in a sparse file, mounted by a loop device, as a
// volume of type `local` (which honours a pod's fsGroup). It grows one when its claim asks for more, while pods use
// it, and removes one that is released with reclaim policy Delete. XFS, since growing a mounted ext4 takes a
// capability (CAP_SYS_RESOURCE) that root in a container may lack; it needs 300 MiB.
type provisioner struct {
	client    kubernetes.Interface
	directory string
	node      string
	name      string
}

func runProvisioner(args []string) int {
	var p provisioner
	flags := flag.NewFlagSet("provisioner", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig file")
	flags.StringVar(&p.directory, "dir", "", "directory that holds the volumes")
	flags.StringVar(&p.node, "node", "", "node that the volumes belong to")
	flags.StringVar(&p.name, "provisioner", "requeue.dev/loop", "name in the storage class")
	_ = flags.Parse(args)
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return fail(err)
	}
	p.client = kubernetes.NewForConfigOrDie(config)
	syscall.Umask(0)
	for ; ; time.Sleep(everyPass) {
		if err := p.pass(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, time.Now().Format(time.RFC3339), err)
		}
	}
}

// pass looks at every volume and claim once.
func (p *provisioner) pass(ctx context.Context) error {
	volumes, err := p.client.CoreV1().PersistentVolumes().List(ctx, meta.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	ours := map[string]*core.PersistentVolume{}
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		if volume.Annotations[provisionedBy] != p.name {
			continue
		}
		ours[volume.Name] = volume
		released := volume.Status.Phase == core.VolumeReleased
		if released && volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete {
			if err := p.remove(ctx, volume.Name); err != nil {
				return err
			}
		}
	}
	claims, err := p.client.CoreV1().PersistentVolumeClaims("").List(ctx, meta.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	for i := range claims.Items {
		if err := p.serve(ctx, &claims.Items[i], ours); err != nil {
			return err
		}
	}
	return nil
}

func (p *provisioner) serve(ctx context.Context, claim *core.PersistentVolumeClaim, ours map[string]*core.PersistentVolume) error {
	if claim.DeletionTimestamp != nil {
		return nil
	}
	asked := claim.Spec.Resources.Requests[core.ResourceStorage]
	switch claim.Status.Phase {
	case core.ClaimPending:
		made := ours[volumeName(claim)] != nil
		if claim.Spec.VolumeName == "" && !made && claim.Annotations[helpers.AnnStorageProvisioner] == p.name {
			return p.make(ctx, claim, asked)
		}
	case core.ClaimBound:
		has := claim.Status.Capacity[core.ResourceStorage]
		if volume := ours[claim.Spec.VolumeName]; volume != nil && asked.Cmp(has) > 0 {
			return p.grow(ctx, claim, volume, asked)
		}
	}
	return nil
}

func volumeName(claim *core.PersistentVolumeClaim) string {
	return "pvc-" + string(claim.UID)
}

// paths are the file that holds the file system, and where it is mounted.
func (p *provisioner) paths(volume string) (file, mounted string) {
	return filepath.Join(p.directory, volume+".img"), filepath.Join(p.directory, volume)
}

func (p *provisioner) make(ctx context.Context, claim *core.PersistentVolumeClaim, size resource.Quantity) error {
	class, err := p.client.StorageV1().StorageClasses().Get(ctx, *claim.Spec.StorageClassName, meta.GetOptions{})
	if err != nil {
		return err
	}
	policy := core.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	file, mounted := p.paths(volumeName(claim))
	if err := os.MkdirAll(mounted, 0o777); err != nil {
		return err
	}
	if !isMounted(mounted) {
		err := run(
			[]string{"truncate", fmt.Sprintf("--size=%d", size.Value()), file},
			[]string{"mkfs.xfs", "-q", "-f", "-K", file},
			[]string{"mount", "-o", "loop", file, mounted},
			[]string{"chmod", "0777", mounted},
		)
		if err != nil {
			return err
		}
	}
	mode := core.PersistentVolumeFilesystem
	here := core.NodeSelectorRequirement{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{p.node}}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: volumeName(claim), Annotations: map[string]string{provisionedBy: p.name}},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: size},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: policy,
			StorageClassName:              class.Name,
			VolumeMode:                    &mode,
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: mounted}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{
				{MatchExpressions: []core.NodeSelectorRequirement{here}},
			}}},
		},
	}
	if _, err = p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{}); errors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// grow the file, the loop device and the mounted file system, then the volume, then the claim: as CSI drivers do.
func (p *provisioner) grow(
	ctx context.Context, claim *core.PersistentVolumeClaim, volume *core.PersistentVolume, size resource.Quantity,
) error {
	file, mounted := p.paths(volume.Name)
	device, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", file).Output()
	if err != nil {
		return fmt.Errorf("losetup of %s: %w", file, err)
	}
	loop := strings.TrimSpace(string(device))
	err = run(
		[]string{"truncate", fmt.Sprintf("--size=%d", size.Value()), file},
		[]string{"losetup", "--set-capacity", loop},
		[]string{"xfs_growfs", mounted},
	)
	if err != nil {
		return err
	}
	grown := volume.DeepCopy()
	grown.Spec.Capacity[core.ResourceStorage] = size
	if _, err := p.client.CoreV1().PersistentVolumes().Update(ctx, grown, meta.UpdateOptions{}); err != nil {
		return err
	}
	told := claim.DeepCopy()
	told.Status.Capacity = core.ResourceList{core.ResourceStorage: size}
	_, err = p.client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, told, meta.UpdateOptions{})
	return err
}

func (p *provisioner) remove(ctx context.Context, volume string) error {
	file, mounted := p.paths(volume)
	if isMounted(mounted) {
		if err := run([]string{"umount", mounted}); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(mounted); err != nil {
		return err
	}
	if err := os.RemoveAll(file); err != nil {
		return err
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume, meta.DeleteOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}

func isMounted(directory string) bool {
	mounts, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(mounts), " "+directory+" ")
}

// run commands one after the other; the first that fails ends it, with what it said.
func run(commands ...[]string) error {
	for _, argv := range commands {
		if said, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, said)
		}
	}
	return nil
}

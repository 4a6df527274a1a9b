// Command provisioner serves the management cluster's default StorageClass: each claim becomes a
// `local` PersistentVolume on a directory of the one node, deleted with its claim when the class
// says so. As on a cloud disk, the directory belongs to root until a pod's fsGroup changes that.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "megacluster.io/local-directory"

func main() {
	klog.InitFlags(nil)
	directory := flag.String("directory", "/var/lib/volumes", "directory of the node that holds the volumes, mounted here at the same path")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *directory); err != nil {
		klog.ErrorS(err, "Provisioner failed")
		klog.FlushAndExit(klog.ExitFlushTimeout, 1)
	}
}

func run(ctx context.Context, directory string) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	// One replica with the Recreate strategy: no election needed.
	controller.NewProvisionController(ctx, client, provisionerName, &provisioner{directory: directory},
		controller.LeaderElection(false)).Run(ctx)
	return nil
}

type provisioner struct {
	directory string
}

// Provision makes the volume's directory. Asked again for the same volume it succeeds again.
func (p *provisioner) Provision(_ context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if options.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, errors.New("no node selected: the StorageClass must bind on the first consumer")
	}
	if mode := options.PVC.Spec.VolumeMode; mode != nil && *mode == corev1.PersistentVolumeBlock {
		return nil, controller.ProvisioningFinished, errors.New("block volumes are not served")
	}
	path := filepath.Join(p.directory, options.PVName)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("make volume directory: %w", err)
	}

	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			MountOptions:                  options.StorageClass.MountOptions,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: options.PVC.Spec.Resources.Requests[corev1.ResourceStorage],
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: path},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{
				Required: &corev1.NodeSelector{
					NodeSelectorTerms: []corev1.NodeSelectorTerm{{
						MatchExpressions: []corev1.NodeSelectorRequirement{{
							// The kubelet runs with --hostname-override, so this label is the node's name.
							Key:      corev1.LabelHostname,
							Operator: corev1.NodeSelectorOpIn,
							Values:   []string{options.SelectedNodeName},
						}},
					}},
				},
			},
		},
	}
	return volume, controller.ProvisioningFinished, nil
}

// Delete removes the directory of a volume that this program made, and no other path.
func (p *provisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	local := volume.Spec.Local
	if local == nil || filepath.Clean(local.Path) != filepath.Join(p.directory, volume.Name) {
		return &controller.IgnoredError{Reason: "the volume is not a directory of this provisioner"}
	}
	return os.RemoveAll(local.Path)
}

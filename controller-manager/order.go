package main

import (
	"context"
	"time"

	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

// How long the controllers of unhurried let the others go first. Each looks through all it has when it
// starts; what clients and nodes wait for would share the CPU with it.
const unhurriedAfter = time.Second

// unhurried are controllers that tidy up or keep accounts: nobody notices them a second later. The
// garbage collector and the quotas have the most to look through: all objects of all resources.
var unhurried = map[string]bool{
	names.GarbageCollectorController:                 true,
	names.ResourceQuotaController:                    true,
	names.PodGarbageCollectorController:              true,
	names.TTLController:                              true,
	names.TTLAfterFinishedController:                 true,
	names.ClusterRoleAggregationController:           true,
	names.CertificateSigningRequestCleanerController: true,
	names.PodCertificateRequestCleanerController:     true,
	names.LegacyServiceAccountTokenCleanerController: true,
	names.StorageVersionGarbageCollectorController:   true,
	names.ValidatingAdmissionPolicyStatusController:  true,
	names.PersistentVolumeProtectionController:       true,
	names.PersistentVolumeClaimProtectionController:  true,
	names.RootCACertificatePublisherController:       true,
}

// later is a controller that starts after a pause.
type later struct {
	app.Controller
	pause time.Duration
}

func (l later) Run(ctx context.Context) {
	select {
	case <-time.After(l.pause):
		l.Controller.Run(ctx)
	case <-ctx.Done():
	}
}

// inOrder lets the unhurried ones start last.
func inOrder(controllers []app.Controller) []app.Controller {
	ordered := make([]app.Controller, 0, len(controllers))
	for _, controller := range controllers {
		if unhurried[controller.Name()] {
			controller = later{controller, unhurriedAfter}
		}
		ordered = append(ordered, controller)
	}
	return ordered
}

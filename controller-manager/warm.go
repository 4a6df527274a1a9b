package main

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
)

const (
	// How often new resources are looked for, as the garbage collector does.
	discoverEvery = 30 * time.Second
	// How long a cache of a resource whose server is away keeps a standby from being synced; then it
	// goes without, as the garbage collector does.
	fillWithin = 30 * time.Second
)

// warmth fills the caches behind the garbage collector and the quota monitors: both take their
// informers from the same factory, and find them full when they start.
type warmth struct {
	context   app.ControllerContext
	discovery discovery.ServerResourcesInterface
	started   map[schema.GroupVersionResource]cache.InformerSynced
}

func newWarmth(controllers app.ControllerContext, client discovery.ServerResourcesInterface) *warmth {
	return &warmth{controllers, client, map[schema.GroupVersionResource]cache.InformerSynced{}}
}

// look starts informers of the resources that have none yet.
func (w *warmth) look(ctx context.Context) {
	settings := w.context.ComponentConfig.GarbageCollectorController
	if !settings.EnableGarbageCollector {
		return
	}
	ignored := map[schema.GroupResource]bool{}
	for _, resource := range settings.GCIgnoredResources {
		ignored[schema.GroupResource{Group: resource.Group, Resource: resource.Resource}] = true
	}
	// What can be discovered is taken; the rest is for the next look.
	found, err := garbagecollector.GetDeletableResources(klog.FromContext(ctx), w.discovery)
	if err != nil {
		klog.InfoS("Not every resource could be discovered", "err", err)
	}
	for resource := range found {
		if _, started := w.started[resource]; started || ignored[resource.GroupResource()] {
			continue
		}
		informer, err := w.context.ObjectOrMetadataInformerFactory.ForResource(resource)
		if err != nil {
			klog.InfoS("No cache of a resource", "resource", resource, "err", err)
			continue
		}
		w.started[resource] = informer.Informer().HasSynced
	}
	w.context.ObjectOrMetadataInformerFactory.Start(ctx.Done())
}

func (w *warmth) full() bool {
	for _, synced := range w.started {
		if !synced() {
			return false
		}
	}
	return true
}

// fill returns once the caches are full, or those that can be.
func (w *warmth) fill(ctx context.Context) {
	began := time.Now()
	for kind, synced := range w.context.InformerFactory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			klog.InfoS("A cache was not filled", "type", kind)
		}
	}
	w.look(ctx)
	for looked := time.Now(); !w.full() && time.Since(looked) < fillWithin && ctx.Err() == nil; {
		time.Sleep(50 * time.Millisecond)
	}
	klog.InfoS("Caches are full", "resources", len(w.started), "all", w.full(), "took", time.Since(began))
}

// keep looks for new resources until ctx is done: then the garbage collector does.
func (w *warmth) keep(ctx, informers context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(discoverEvery):
			w.look(informers)
		}
	}
}

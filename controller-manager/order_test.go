package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

type noted struct {
	name    string
	started chan<- string
}

func (n noted) Name() string { return n.name }

func (n noted) Run(ctx context.Context) {
	n.started <- n.name
	<-ctx.Done()
}

func TestUnhurriedControllersStartLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := make(chan string, 2)
		both := inOrder([]app.Controller{
			noted{names.GarbageCollectorController, started},
			noted{names.DeploymentController, started},
		})
		ctx, stop := context.WithCancel(t.Context())
		began := time.Now()
		for _, controller := range both {
			go controller.Run(ctx)
		}
		if first := <-started; first != names.DeploymentController || time.Since(began) > 0 {
			t.Errorf("%s started first, after %v", first, time.Since(began))
		}
		if second := <-started; second != names.GarbageCollectorController || time.Since(began) != unhurriedAfter {
			t.Errorf("%s started then, after %v", second, time.Since(began))
		}
		stop()
	})
}

func TestOneThatNeverStartedEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		stop()
		began := time.Now()
		started := make(chan string, 1)
		inOrder([]app.Controller{noted{names.ResourceQuotaController, started}})[0].Run(ctx)
		if time.Since(began) > 0 || len(started) > 0 {
			t.Error("it has started")
		}
	})
}

// A name that Kubernetes gives up would silently lose its place.
func TestUnhurriedControllersExist(t *testing.T) {
	known := app.NewControllerDescriptors()
	for name := range unhurried {
		if known[name] == nil {
			t.Errorf("no controller is called %s", name)
		}
	}
}

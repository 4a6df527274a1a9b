package journey

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What happens in each fault, and within which time one leads again, is in docs/failover.md. The
// times here are that table's, the second after which each candidate looks at the Lease again, and the
// two seconds in which the new leaders do their first work. Where processes
// have to start first it is a restart's.
const (
	leaseTime   = 5 * time.Second
	settleTime  = 3400 * time.Millisecond
	lookTime    = time.Second
	workTime    = 2 * time.Second
	restartTime = 10 * time.Second
)

// works waits until the controller manager and the scheduler do their work again within that time since
// began.
func works(t *testing.T, ns, app string, seen *podsSeen, began time.Time, within time.Duration) {
	t.Helper()
	deploy(t, ns, app, 3)
	seen.until(t, app+": pods are created and bound", func() bool {
		bound := 0
		for podName := range seen.bound {
			if len(podName) > len(app) && podName[:len(app)+1] == app+"-" {
				bound++
			}
		}
		return bound == 3
	})
	took := time.Since(began)
	t.Logf("%s: works after %s", app, took.Round(10*time.Millisecond))
	if took > within {
		t.Errorf("%s: works only after %s, not within %s", app, took.Round(10*time.Millisecond), within)
	}
}

// TestFailoverOfLeasesAndBothReplicas: both replicas killed at once and started at once, the Lease
// deleted, the Lease edited, for the controller manager and the relays together.
func TestFailoverOfLeasesAndBothReplicas(t *testing.T) {
	ns := scratch(t)
	seen := follow(t, ns)
	both := []elected{controllerManager, relay}
	cases := []struct {
		name   string
		within time.Duration
		do     func(t *testing.T, e elected, before leads)
	}{
		{"both-killed", leaseTime + restartTime, func(t *testing.T, e elected, _ leads) {
			for _, pod := range e.mustReplicas(t) {
				mustKill(t, processes(t, &pod))
			}
		}},
		{"both-replaced", leaseTime + 2*restartTime, func(t *testing.T, e elected, _ leads) {
			for _, pod := range e.mustReplicas(t) {
				renew(t, &pod)
			}
		}},
		{"lease-deleted", lookTime + settleTime + workTime, func(t *testing.T, e elected, _ leads) {
			if err := mega.client.CoordinationV1().Leases(e.leases).Delete(t.Context(), e.lease, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"lease-edited", lookTime + leaseTime + workTime, func(t *testing.T, e elected, _ leads) {
			patch := []byte(`{"spec":{"holderIdentity":"nobody","leaseDurationSeconds":5}}`)
			if _, err := mega.client.CoordinationV1().Leases(e.leases).Patch(t.Context(), e.lease, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, c := range cases {
		before := make([]leads, len(both))
		for i, e := range both {
			before[i], _ = e.warm(t)
		}
		check := oneLeader(t, both)
		began := time.Now()
		for i, e := range both {
			c.do(t, e, before[i])
		}
		// The old leader may go on for a moment: that the work is done shows nothing before another
		// epoch has begun.
		for i, e := range both {
			eventually(t, c.within, c.name+": "+e.component+" leads in a later epoch", func(ctx context.Context) error {
				now, err := e.read(ctx)
				if err == nil && !later(now.epoch, before[i].epoch) {
					err = fmt.Errorf("epoch %s follows %s", now.epoch, before[i].epoch)
				}
				return err
			})
		}
		works(t, ns, c.name, seen, began, c.within)
		check()
		if c.name == "both-killed" {
			for _, e := range both {
				for _, pod := range e.mustReplicas(t) {
					renew(t, &pod)
				}
			}
		}
	}
	for _, e := range both {
		e.warm(t)
	}
	shown(t)
	seen.boundOnce(t)
}

func (e elected) mustReplicas(t *testing.T) []corev1.Pod {
	t.Helper()
	list, err := management.client.CoreV1().Pods(e.pods).List(t.Context(), metav1.ListOptions{LabelSelector: e.labels})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// oneLeader follows the Leases: an epoch has one holder, and none comes after a later one.
func oneLeader(t *testing.T, of []elected) (check func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var looks atomic.Int64
	found := []string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		holders, last := map[string]string{}, map[string]string{}
		for ctx.Err() == nil {
			for _, e := range of {
				now, err := e.read(ctx)
				if err != nil {
					continue
				}
				looks.Add(1)
				if now.pod == "" {
					// What the user wrote into it: no candidate's name.
					continue
				}
				key := e.component + " " + now.epoch
				if before := holders[key]; before != "" && before != now.pod {
					found = append(found, fmt.Sprintf("%s: epoch %s has the holders %s and %s", e.component, now.epoch, before, now.pod))
				}
				holders[key] = now.pod
				if later(last[e.component], now.epoch) {
					found = append(found, fmt.Sprintf("%s: epoch %s after %s", e.component, now.epoch, last[e.component]))
				}
				last[e.component] = now.epoch
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return func() {
		t.Helper()
		stop()
		<-done
		for _, problem := range found {
			t.Error(problem)
		}
		if looks.Load() == 0 {
			t.Error("the Leases could not be read once")
		}
	}
}

package journey

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// pinned are pods that each fit one node alone. With so many of them each shard of the sample has
// some: all 16 on one of two shards come once in 32,768 times.
const pinned = 16

// pinPods creates pods for nodes chosen at random.
func pinPods(t *testing.T, ns, prefix string, nodes []string) {
	t.Helper()
	var creating sync.WaitGroup
	for i := range pinned {
		spec := podSpec("10m")
		spec.NodeSelector = map[string]string{"kubernetes.io/hostname": nodes[rand.IntN(len(nodes))]}
		creating.Go(func() { createPod(t, ns, fmt.Sprintf("%s-%d", prefix, i), spec) })
	}
	creating.Wait()
}

func createPod(t *testing.T, ns, podName string, spec corev1.PodSpec) {
	soon(t, "create a pod", func(ctx context.Context) error {
		_, err := mega.client.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: podName}, Spec: spec}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// allBound says whether all pods of a call of pinPods have been seen bound.
func (s *podsSeen) allBound(prefix string) func() bool {
	return func() bool {
		for i := range pinned {
			if s.bound[fmt.Sprintf("%s-%d", prefix, i)].IsZero() {
				return false
			}
		}
		return true
	}
}

func nodeNames(t *testing.T) []string {
	t.Helper()
	nodes, err := mega.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) == 0 {
		t.Fatalf("nodes: %v", err)
	}
	names := make([]string, 0, len(nodes.Items))
	for i := range nodes.Items {
		names = append(names, nodes.Items[i].Name)
	}
	return names
}

func TestFailoverRelayKilled(t *testing.T) {
	ns := scratch(t)
	nodes := nodeNames(t)
	seen := follow(t, ns)
	newRow(t, "relay killed: new pods are bound", time.Second).measure(func(r *round) {
		prefix := fmt.Sprintf("relay-%d", r.number)
		before, victim := relay.warm(t)
		pids := processes(t, victim)
		r.begin()
		mustKill(t, pids)
		pinPods(t, ns, prefix, nodes)
		seen.until(t, "the pods are bound", seen.allBound(prefix))
		r.end()
		relay.tookOver(t, before)
		renew(t, victim)
	})
	seen.boundOnce(t)
}

// withStandbys gives each shard a standby for as long as the test, where the sample has none.
func withStandbys(t *testing.T) {
	t.Helper()
	patch := func(ctx context.Context, count string) error {
		_, err := management.dynamic.Resource(megaClusters).Namespace(namespace).Patch(ctx, name, types.MergePatchType,
			[]byte(`{"spec":{"scheduler":{"standbyPerShard":`+count+`}}}`), metav1.PatchOptions{})
		return err
	}
	if _, err := pods(t.Context(), "scheduler-standby"); err == nil {
		return
	}
	if err := patch(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = patch(context.Background(), "null") })
	eventually(t, time.Minute, "there are standbys", func(ctx context.Context) error {
		_, err := pods(ctx, "scheduler-standby")
		return err
	})
	waitReady(t, 2*time.Minute)
}

// shardReady waits until both copies of all shards are.
func shardsReady(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, "both copies of all shards are ready", func(ctx context.Context) error {
		for _, component := range []string{"scheduler-shard", "scheduler-standby"} {
			running, err := pods(ctx, component)
			if err != nil {
				return err
			}
			if len(running) != 2 {
				return fmt.Errorf("%d pods of %s", len(running), component)
			}
			for i := range running {
				if !podReady(&running[i]) {
					return fmt.Errorf("pod %s is not ready", running[i].Name)
				}
			}
		}
		return nil
	})
	// The leading relay hears of each copy once a second.
	time.Sleep(2 * time.Second)
}

// TestFailoverShardKilled kills the copies of a shard in turn: after a round the other one is asked.
func TestFailoverShardKilled(t *testing.T) {
	withStandbys(t)
	ns := scratch(t)
	nodes := nodeNames(t)
	seen := follow(t, ns)
	newRow(t, "scheduler shard killed: new pods are bound to its nodes", time.Second).witnessedBy("scheduler-relay").measure(func(r *round) {
		prefix := fmt.Sprintf("shard-%d", r.number)
		relay.warm(t)
		shardsReady(t)
		component := []string{"scheduler-standby", "scheduler-shard"}[r.number%2]
		running, err := pods(t.Context(), component)
		if err != nil {
			t.Fatal(err)
		}
		// Both copies of that name: the one in use is among them.
		pids := []int{}
		for i := range running {
			pids = append(pids, processes(t, &running[i])...)
		}
		r.begin()
		mustKill(t, pids)
		pinPods(t, ns, prefix, nodes)
		seen.until(t, "the pods are bound", seen.allBound(prefix))
		r.end()
		for i := range running {
			renew(t, &running[i])
		}
	})
	seen.boundOnce(t)
}

// TestFailoverSchedulerRollout creates pods as quickly as FAILOVER_RATE says, by default 500/s in
// the long form and 50/s in the short one, while relays and shards are rolled out. The figure is
// the longest time without a bind while pods wait.
func TestFailoverSchedulerRollout(t *testing.T) {
	withStandbys(t)
	rate := 50
	if failoverRounds() > shortRounds {
		rate = 500
	}
	if wanted, err := strconv.Atoi(os.Getenv("FAILOVER_RATE")); err == nil && wanted > 0 {
		rate = wanted
	}
	newRow(t, fmt.Sprintf("scheduler rolled out, %d pods/s arriving: the longest without a bind", rate), 500*time.Millisecond).notHeld("0.2 to 0.5 s were seen at 50 pods/s, and 0.4 to 1.1 s at 100, which is all that two CPUs can take with a kube-apiserver on them").witnessedBy("scheduler-relay").measure(func(r *round) {
		ns := scratch(t)
		seen := follow(t, ns)
		relay.warm(t)
		shardsReady(t)
		r.begin()
		ctx, stop := context.WithCancel(t.Context())
		arrivals := arrive(ctx, t, ns, rate)
		eventually(t, 3*time.Minute, "the rollout", relay.rollOut(t, r.number))
		time.Sleep(time.Second)
		stop()
		created := arrivals()
		elapsed := time.Since(r.began)
		seen.until(t, "every pod is bound", func() bool { return len(seen.bound) >= len(created) })
		seen.boundOnce(t)
		longest, ended := seen.longestGap(created)
		r.endWith(longest)
		t.Logf("the longest ended at %s", ended.UTC().Format(time.StampMilli))
		t.Logf("%d pods in %s, %.0f/s", len(created), elapsed.Round(time.Second), float64(len(created))/elapsed.Seconds())
		err := mega.client.CoreV1().Pods(ns).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}, metav1.ListOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	checkNodes(t)
}

// arrive creates pods evenly until ctx ends; what it gives then waits for the last, and tells when
// each was acknowledged.
func arrive(ctx context.Context, t *testing.T, ns string, rate int) func() map[string]time.Time {
	const creators = 32
	var mutex sync.Mutex
	created := map[string]time.Time{}
	var next atomic.Int64
	var working sync.WaitGroup
	start := time.Now()
	for range creators {
		working.Go(func() {
			for {
				number := next.Add(1)
				due := start.Add(time.Duration(number) * time.Second / time.Duration(rate))
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Until(due)):
				}
				podName := fmt.Sprintf("p-%d", number)
				createPod(t, ns, podName, podSpec("10m"))
				mutex.Lock()
				created[podName] = time.Now()
				mutex.Unlock()
			}
		})
	}
	return func() map[string]time.Time {
		working.Wait()
		return created
	}
}

// longestGap is the longest time in which no pod was bound though one waited, and when it ended.
func (s *podsSeen) longestGap(created map[string]time.Time) (longest time.Duration, ended time.Time) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	type event struct {
		at    time.Time
		bound bool
	}
	events := make([]event, 0, 2*len(created))
	for podName, at := range created {
		bound := s.bound[podName]
		// The bind may be seen before the answer to the creation.
		if bound.Before(at) {
			at = bound
		}
		events = append(events, event{at, false}, event{bound, true})
	}
	// At one moment a creation comes before its bind.
	sortEvents(events, func(e event) (time.Time, bool) { return e.at, e.bound })
	waiting := 0
	var since time.Time
	for _, e := range events {
		if e.bound {
			if gap := e.at.Sub(since); gap > longest {
				longest, ended = gap, e.at
			}
			waiting, since = waiting-1, e.at
			continue
		}
		if waiting == 0 {
			since = e.at
		}
		waiting++
	}
	return longest, ended
}

package journey

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// twoFrontDoors waits until two front doors run and are ready.
func twoFrontDoors(t *testing.T) time.Duration {
	t.Helper()
	return frontDoors(t, 2)
}

// frontDoors waits until so many front doors run and are ready. For a second or two after a kill the
// kubelet has not seen it, and the pod still looks well.
func frontDoors(t *testing.T, count int) time.Duration {
	t.Helper()
	return eventually(t, 2*time.Minute, fmt.Sprintf("%d front doors are ready", count), func(ctx context.Context) error {
		if err := readyPods(ctx, "watchcache", count); err != nil {
			return err
		}
		running, err := pods(ctx, "watchcache")
		if err != nil {
			return err
		}
		for i := range running {
			if len(doorProcesses(t, &running[i])) == 0 {
				return fmt.Errorf("no front door runs in %s", running[i].Name)
			}
			if _, err := podGet(ctx, &running[i], 9443, "/readyz"); err != nil {
				return err
			}
		}
		return nil
	})
}

// killFrontDoor kills the process of a front door, whichever it is.
func killFrontDoor(t *testing.T) *corev1.Pod {
	t.Helper()
	running, err := pods(t.Context(), "watchcache")
	if err != nil || len(running) < 2 {
		t.Fatalf("%d front doors: %v", len(running), err)
	}
	victim := &running[rand.IntN(len(running))]
	mustKill(t, doorProcesses(t, victim))
	return victim
}

// cacheAnswers reads how many requests the front doors have answered themselves, and how many of
// those of cached resources they passed on.
func cacheAnswers(t *testing.T) (answers, passes float64) {
	t.Helper()
	running, err := pods(t.Context(), "watchcache")
	if err != nil {
		t.Fatal(err)
	}
	for i := range running {
		metrics, err := podGet(t.Context(), &running[i], 9443, "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(metrics) {
			name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte("} "))
			number, err := strconv.ParseFloat(string(value), 64)
			switch {
			case err != nil:
			case bytes.HasPrefix(name, []byte("megacluster_watchcache_cache_answers_total{")):
				answers += number
			case bytes.HasPrefix(name, []byte("megacluster_watchcache_cache_passes_total{")):
				t.Logf("%s: %s", running[i].Name, bytes.TrimSpace(line))
				passes += number
			}
		}
	}
	return answers, passes
}

// TestCacheServesTheCluster: what the sample lists as cached is answered by the front doors, for the
// controller manager, the scheduler, kwok and kubectl alike.
func TestCacheServesTheCluster(t *testing.T) {
	before, _ := cacheAnswers(t)
	for _, resource := range []string{"pods", "nodes", "leases.coordination.k8s.io", "configmaps"} {
		mega.mustKubectl(t, "", "get", resource, "-A", "-o", "json")
	}
	answers, passes := cacheAnswers(t)
	t.Logf("%.0f answered, %.0f passed on", answers, passes)
	if answers < before+4 {
		t.Errorf("the front doors have answered %.0f requests, then %.0f", before, answers)
	}
}

// TestWatchCacheShardKilled kills a front door's process, and with it the cache's shards in it, at
// random; the guard of its port stays.
func TestWatchCacheShardKilled(t *testing.T) {
	twoFrontDoors(t)
	const open = "client-go dials once for each informer, and a thousand TLS handshakes keep two CPUs busy for a second or two"
	watchesGoOn(t, "front door process", open, func(t *testing.T, _ int) func() {
		killFrontDoor(t)
		return func() { twoFrontDoors(t) }
	})
}

// history is what one informer has seen of objects whose data count up: each number once, in order.
type history struct {
	mutex  sync.Mutex
	last   map[string]int
	faults []string
}

// handler sees of all objects those that are ours.
func (h *history) handler(ours func(object any) bool) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{FilterFunc: ours, Handler: cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { h.see(object, false) },
		UpdateFunc: func(_, object any) { h.see(object, false) },
		DeleteFunc: func(object any) { h.see(object, true) },
	}}
}

// counted gives the number that an object is at, and its name.
func counted(object any) (number int, name string) {
	switch object := object.(type) {
	case *corev1.ConfigMap:
		return numberOf(object), object.Name
	case *unstructured.Unstructured:
		number, _, _ := unstructured.NestedInt64(object.Object, "spec", "number")
		return int(number), object.GetName()
	default:
		return 0, fmt.Sprintf("%T", object)
	}
}

func (h *history) see(object any, gone bool) {
	if tombstone, is := object.(cache.DeletedFinalStateUnknown); is {
		object = tombstone.Obj
	}
	number, name := counted(object)
	h.mutex.Lock()
	defer h.mutex.Unlock()
	expected := h.last[name] + 1
	if gone {
		// As it was last.
		expected = h.last[name]
	}
	if number != expected && len(h.faults) < 10 {
		h.faults = append(h.faults, fmt.Sprintf("%s: %d (gone: %t) where %d was to come", name, number, gone, expected))
	}
	h.last[name] = number
}

// churned is an object that comes, changes and goes.
type churned struct {
	create, update func(ctx context.Context, number int) error
	remove         func(ctx context.Context) error
}

// churnedMap is a ConfigMap.
func churnedMap(client *kubernetes.Clientset, ns, name string) churned {
	maps := client.CoreV1().ConfigMaps(ns)
	at := func(number int) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"churn": "yes"}},
			Data: map[string]string{"number": strconv.Itoa(number)}}
	}
	return churned{
		create: func(ctx context.Context, number int) error {
			_, err := maps.Create(ctx, at(number), metav1.CreateOptions{})
			return err
		},
		update: func(ctx context.Context, number int) error {
			_, err := maps.Update(ctx, at(number), metav1.UpdateOptions{})
			return err
		},
		remove: func(ctx context.Context) error { return maps.Delete(ctx, name, metav1.DeleteOptions{}) },
	}
}

// churn creates, changes and deletes one object until ctx ends. Whatever fails is tried again:
// what has been done already changes nothing, and nobody hears of it. It gives the last number.
func churn(ctx context.Context, object churned) int {
	number, there := 0, false
	insist := func(attempt func(context.Context) error) {
		for {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			err := attempt(limited)
			cancel()
			if err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	for ctx.Err() == nil {
		if there && rand.IntN(6) == 0 {
			insist(func(ctx context.Context) error {
				err := object.remove(ctx)
				if apierrors.IsNotFound(err) {
					return nil
				}
				return err
			})
			there = false
			continue
		}
		number++
		insist(func(ctx context.Context) error {
			if there {
				return object.update(ctx, number)
			}
			err := object.create(ctx, number)
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
		there = true
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
	}
	return number
}

// churnAll churns objects of these names, in order, while do runs, and gives the last number of each.
func churnAll(t *testing.T, names []string, object func(name string) churned, do func()) map[string]int {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writing sync.WaitGroup
	last := make([]int, len(names))
	for place, name := range names {
		writing.Go(func() { last[place] = churn(ctx, object(name)) })
	}
	do()
	stop()
	writing.Wait()
	numbers := map[string]int{}
	for place, name := range names {
		numbers[name] = last[place]
	}
	return numbers
}

// sawAll waits until all have seen the last of each object, and says what any of them has missed or
// heard twice. It gives the number of changes.
func sawAll(t *testing.T, histories []*history, last map[string]int) int {
	t.Helper()
	changes := 0
	for name, last := range last {
		changes += last
		eventually(t, 30*time.Second, "all informers have seen all of "+name, func(context.Context) error {
			for place, seen := range histories {
				seen.mutex.Lock()
				at := seen.last[name]
				seen.mutex.Unlock()
				if at != last {
					return fmt.Errorf("informer %d is at %d of %d", place, at, last)
				}
			}
			return nil
		})
	}
	for place, seen := range histories {
		seen.mutex.Lock()
		for _, fault := range seen.faults {
			t.Errorf("informer %d: %s", place, fault)
		}
		seen.mutex.Unlock()
	}
	return changes
}

// TestInformersNeverListAnew follows objects that come, change and go by informers of several kinds
// while front doors are killed at random: none of them lists again, misses a change or hears of one
// twice.
func TestInformersNeverListAnew(t *testing.T) {
	const objects, each, kills = 6, 10, 4
	twoFrontDoors(t)
	ns := scratch(t)
	var lists atomic.Int64
	histories, synced := []*history{}, []cache.InformerSynced{}
	for _, labels := range []string{"", "churn=yes", "churn!=no"} {
		for number := range each {
			config := direct(t, &lists)
			if number%2 == 0 {
				config.ContentType = "application/json"
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(ns),
				informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.LabelSelector = labels }))
			informer, seen := factory.Core().V1().ConfigMaps().Informer(), &history{last: map[string]int{}}
			// A namespace has a ConfigMap of its own, which is not ours.
			ours := func(object any) bool {
				config, is := object.(*corev1.ConfigMap)
				return !is || config.Labels["churn"] == "yes"
			}
			if _, err := informer.AddEventHandler(seen.handler(ours)); err != nil {
				t.Fatal(err)
			}
			factory.Start(t.Context().Done())
			histories, synced = append(histories, seen), append(synced, informer.HasSynced)
		}
	}
	if !cache.WaitForCacheSync(t.Context().Done(), synced...) {
		t.Fatal("the informers are not synced")
	}
	// A watch that is broken off in its first second is begun anew by client-go.
	time.Sleep(2 * time.Second)
	first := lists.Load()
	client, err := kubernetes.NewForConfig(direct(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, objects)
	for number := range names {
		names[number] = fmt.Sprintf("c-%d", number)
	}
	last := churnAll(t, names, func(name string) churned { return churnedMap(client, ns, name) }, func() {
		for kill := range kills {
			time.Sleep(time.Duration(500+rand.IntN(2000)) * time.Millisecond)
			victim := killFrontDoor(t)
			took := twoFrontDoors(t)
			t.Logf("kill %d: %s, ready again after %s", kill+1, victim.Name, took.Round(100*time.Millisecond))
		}
	})
	changes := sawAll(t, histories, last)
	if again := lists.Load() - first; again > 0 {
		t.Errorf("%d lists after the first", again)
	}
	t.Logf("%d changes, each seen once by each of %d informers over %d kills", changes, len(histories), kills)
}

package journey

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// divide sets into how many parts the front doors divide what they cache, and waits until those that
// are asked for are there, ready, and no others.
func divide(ctx context.Context, t *testing.T, parts int) {
	t.Helper()
	wanted := []string{name + "-watchcache"}
	if parts > 1 {
		wanted = nil
		for part := range parts {
			wanted = append(wanted, fmt.Sprintf("%s-watchcache-%d-of-%d", name, part, parts))
		}
	}
	patch := fmt.Sprintf(`{"spec":{"watchCache":{"parts":%d}}}`, parts)
	if output, err := management.kubectl(ctx, "", "-n", namespace, "patch", "megacluster", name, "--type=merge", "-p", patch); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	began := time.Now()
	there := func(ctx context.Context) error {
		list, err := management.client.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{
			LabelSelector: "megacluster.io/name=" + name + ",app.kubernetes.io/component=watchcache"})
		if err != nil {
			return err
		}
		found := []string{}
		for i := range list.Items {
			found = append(found, list.Items[i].Name)
		}
		if slices.Sort(found); !slices.Equal(found, wanted) {
			return fmt.Errorf("Deployments %v, not %v", found, wanted)
		}
		if err := readyPods(ctx, "watchcache", 2*parts); err != nil {
			return err
		}
		return ready(ctx, namespace, name)
	}
	// Not by eventually: at the end the test's context is done.
	for err := there(ctx); err != nil; err = there(ctx) {
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("%d parts: %v", parts, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("%d parts: the front doors are there, and no others, after %s", parts, time.Since(began).Round(100*time.Millisecond))
}

// versions is what one informer has seen of pods whose annotation counts up while others change their
// status: each number, and each version once.
type versions struct {
	mutex   sync.Mutex
	number  map[string]int
	version map[string]uint64
	faults  []string
}

func (v *versions) see(object any) {
	pod, is := object.(*corev1.Pod)
	if !is {
		return
	}
	number, _ := strconv.Atoi(pod.Annotations["number"])
	version, err := strconv.ParseUint(pod.ResourceVersion, 10, 64)
	v.mutex.Lock()
	defer v.mutex.Unlock()
	last, known := v.number[pod.Name]
	if err != nil || version <= v.version[pod.Name] || known && number != last && number != last+1 {
		v.faults = append(v.faults, fmt.Sprintf("%s: number %d, version %s after number %d, version %d", pod.Name, number, pod.ResourceVersion, last, v.version[pod.Name]))
	}
	v.number[pod.Name], v.version[pod.Name] = number, version
}

// TestPartsOfTheCache divides what the front doors cache, and undoes that, with informers on: of the
// pods of one node each, by label, and of everything. None lists anew, misses a change or hears of one
// twice, also when a front door of a part is killed; and each front door answers for the nodes of all
// parts.
func TestPartsOfTheCache(t *testing.T) {
	const nodes = 8
	twoFrontDoors(t)
	ns := scratch(t)
	client, err := kubernetes.NewForConfig(direct(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	nodeOf := func(number int) string { return fmt.Sprintf("node-%04d", number) }
	for number := range nodes {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: nodeOf(number), Labels: map[string]string{"half": strconv.Itoa(number % 2)}, Annotations: map[string]string{"number": "0"}},
			Spec: corev1.PodSpec{NodeName: nodeOf(number), Containers: []corev1.Container{{Name: "c", Image: "none"}}}}
		if _, err := client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	// What an informer asks for, and of how many pods it then hears.
	type follows struct {
		fields, labels string
		pods           []int
	}
	all := follows{}
	halves := []follows{{labels: "half=0"}, {labels: "half=1"}}
	kinds := []follows{}
	for number := range nodes {
		all.pods = append(all.pods, number)
		halves[number%2].pods = append(halves[number%2].pods, number)
		selector := fields.OneTermEqualSelector("spec.nodeName", nodeOf(number)).String()
		kinds = append(kinds, follows{fields: selector, pods: []int{number}})
	}
	kinds = append(append(kinds, all), halves...)
	var lists atomic.Int64
	informers, synced := []*versions{}, []cache.InformerSynced{}
	for place, kind := range append(kinds, kinds...) {
		config := direct(t, &lists)
		if place >= len(kinds) {
			config.ContentType = "application/json"
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		// Kubelets and schedulers ask for all namespaces, here with what else the nodes run.
		source := cache.NewFilteredListWatchFromClient(client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll, func(options *metav1.ListOptions) {
			options.FieldSelector, options.LabelSelector = kind.fields, kind.labels
		})
		informer, seen := cache.NewSharedInformer(source, &corev1.Pod{}, 0), &versions{number: map[string]int{}, version: map[string]uint64{}}
		ours := func(object any) bool {
			pod, is := object.(*corev1.Pod)
			return is && pod.Namespace == ns
		}
		if _, err := informer.AddEventHandler(cache.FilteringResourceEventHandler{FilterFunc: ours, Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    seen.see,
			UpdateFunc: func(_, object any) { seen.see(object) },
		}}); err != nil {
			t.Fatal(err)
		}
		go informer.RunWithContext(t.Context())
		informers, synced = append(informers, seen), append(synced, informer.HasSynced)
	}
	if !cache.WaitForCacheSync(t.Context().Done(), synced...) {
		t.Fatal("the informers are not synced")
	}
	// A watch that is broken off in its first second is begun anew by client-go.
	time.Sleep(2 * time.Second)
	first := lists.Load()

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writing sync.WaitGroup
	last := make([]int, nodes)
	for number := range nodes {
		writing.Go(func() {
			for ctx.Err() == nil {
				patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"number":"%d"}}}`, last[number]+1)
				limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
				_, err := client.CoreV1().Pods(ns).Patch(limited, nodeOf(number), types.MergePatchType, patch, metav1.PatchOptions{})
				cancel()
				if err == nil {
					last[number]++
				}
				time.Sleep(150 * time.Millisecond)
			}
		})
	}
	defer divide(context.WithoutCancel(t.Context()), t, 1)
	divide(t.Context(), t, 2)
	everyDoorKnowsEveryNode(t, ns, nodes)
	killPart(t, 0, 2)
	killPart(t, 1, 2)
	divide(t.Context(), t, 1)
	everyDoorKnowsEveryNode(t, ns, nodes)
	stop()
	writing.Wait()

	changes := 0
	for number, last := range last {
		changes += last
		for place, seen := range informers {
			kind := kinds[place%len(kinds)]
			if !slices.Contains(kind.pods, number) {
				continue
			}
			eventually(t, 30*time.Second, "the informers have seen the last change", func(context.Context) error {
				seen.mutex.Lock()
				defer seen.mutex.Unlock()
				if at := seen.number[nodeOf(number)]; at != last {
					return fmt.Errorf("informer %d (%q, %q) is at %d of %d of %s", place, kind.fields, kind.labels, at, last, nodeOf(number))
				}
				return nil
			})
		}
	}
	for place, seen := range informers {
		kind := kinds[place%len(kinds)]
		seen.mutex.Lock()
		for _, fault := range seen.faults {
			t.Errorf("informer %d (%q, %q): %s", place, kind.fields, kind.labels, fault)
		}
		if len(seen.number) != len(kind.pods) {
			t.Errorf("informer %d (%q, %q) heard of %d pods, not %d", place, kind.fields, kind.labels, len(seen.number), len(kind.pods))
		}
		seen.mutex.Unlock()
	}
	if again := lists.Load() - first; again > 0 {
		t.Errorf("%d lists after the first", again)
	}
	t.Logf("%d changes, seen by %d informers", changes, len(informers))
}

// everyDoorKnowsEveryNode asks each front door for the pods of each node, as kubelets do, whichever part
// it holds.
func everyDoorKnowsEveryNode(t *testing.T, ns string, nodes int) {
	t.Helper()
	doors, err := pods(t.Context(), "watchcache")
	if err != nil {
		t.Fatal(err)
	}
	before, passed := cacheAnswers(t)
	for i := range doors {
		config := rest.CopyConfig(mega.config)
		config.QPS = -1
		address := net.JoinHostPort(doors[i].Status.PodIP, "6443")
		config.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialPod(ctx, address) }
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		for number := range nodes {
			node := fmt.Sprintf("node-%04d", number)
			found, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
			if err != nil || len(found.Items) != 1 || found.Items[0].Name != node {
				t.Errorf("%s: %s has %d pods: %v", doors[i].Name, node, len(found.Items), err)
			}
		}
	}
	answers, passes := cacheAnswers(t)
	t.Logf("%d reads of %d front doors: %.0f answered by front doors, %.0f passed on", len(doors)*nodes, len(doors), answers-before, passes-passed)
	if answers-before < float64(len(doors)*nodes) {
		t.Errorf("the front doors answered %.0f of %d reads", answers-before, len(doors)*nodes)
	}
}

// killPart kills the process of a front door of one part, and waits until all are ready again.
func killPart(t *testing.T, part, parts int) {
	t.Helper()
	time.Sleep(2 * time.Second)
	running, err := pods(t.Context(), "watchcache")
	if err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("%s-watchcache-%d-of-%d-", name, part, parts)
	at := slices.IndexFunc(running, func(pod corev1.Pod) bool { return strings.HasPrefix(pod.Name, prefix) })
	if at < 0 {
		t.Fatalf("no front door of part %d", part)
	}
	mustKill(t, doorProcesses(t, &running[at]))
	took := frontDoors(t, 2*parts)
	t.Logf("%s killed, ready again after %s", running[at].Name, took.Round(100*time.Millisecond))
}

package journey

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	// Each client has connections of its own, as a process has.
	informerClients = 20
	// A change for all informers comes this often. Each of them gets each of them.
	changeEvery = 200 * time.Millisecond
)

func informerCount() int {
	if count, err := strconv.Atoi(os.Getenv("FAILOVER_INFORMERS")); err == nil && count > 0 {
		return count
	}
	return 1000
}

// relists counts requests that begin anew: a LIST, or a watch that asks for the initial events.
type relists struct {
	next  http.RoundTripper
	count *atomic.Int64
}

func (r relists) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	watches := query.Get("watch") == "true" || query.Get("watch") == "1"
	if request.Method == http.MethodGet && (!watches || query.Get("sendInitialEvents") == "true") {
		r.count.Add(1)
	}
	return r.next.RoundTrip(request)
}

// informed is what the informers of this process have seen of one ConfigMap, whose data count up.
type informed struct {
	mutex sync.Mutex
	last  []int
	lost  int
	twice int
	// The worst delay of an event since it was last reset.
	worst   time.Duration
	written map[int]time.Time
	// What tells where a delay comes from.
	changes map[int]*change
}

// change is what became of one change: how often it was sent and what failed of that; since it was sent
// for the last time, how long its answer took, and the first and the last informer that saw it.
type change struct {
	attempts              int
	failures              []string
	answer, first, latest time.Duration
}

func (s *informed) see(informer, number int) {
	now := time.Now()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch last := s.last[informer]; {
	case number <= last:
		s.twice++
	case last > 0 && number > last+1:
		s.lost += number - last - 1
	}
	s.last[informer] = number
	if written, found := s.written[number]; found {
		s.worst = max(s.worst, now.Sub(written))
		one := s.change(number)
		one.latest = now.Sub(written)
		if one.first == 0 {
			one.first = one.latest
		}
	}
}

func (s *informed) change(number int) *change {
	one := s.changes[number]
	if one == nil {
		one = &change{}
		s.changes[number] = one
	}
	return one
}

// remarkable tells of the changes after a moment that failed at first or that some informer saw late.
func (s *informed) remarkable(t *testing.T, since time.Time, late time.Duration) {
	t.Helper()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, number := range slices.Sorted(maps.Keys(s.changes)) {
		one, sent := s.changes[number], s.written[number].Sub(since)
		if sent > -late && (len(one.failures) > 0 || one.latest > late) {
			t.Logf("change %d, sent %s after the kill, attempt %d: answered after %s, seen by the first informer after %s, by the last after %s; %v",
				number, sent.Round(time.Millisecond), one.attempts, one.answer, one.first.Round(time.Millisecond),
				one.latest.Round(time.Millisecond), one.failures)
		}
	}
}

func numberOf(object any) int {
	config, ok := object.(*corev1.ConfigMap)
	if !ok {
		return 0
	}
	number, _ := strconv.Atoi(config.Data["number"])
	return number
}

// direct gives a client's configuration that reaches the MegaCluster's Service as a client inside
// the management cluster does: by its address, behind which kube-proxy chooses a front door.
func direct(t *testing.T, count *atomic.Int64) *rest.Config {
	t.Helper()
	service, err := management.client.CoreV1().Services(namespace).Get(t.Context(), name+"-api", getOptions)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(service.Spec.ClusterIP, strconv.Itoa(int(service.Spec.Ports[0].Port)))
	config := rest.CopyConfig(mega.config)
	config.QPS = -1
	// As components do: a thousand watches by JSON would keep the machine busy.
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialPod(ctx, address) }
	if count != nil {
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { return relists{next, count} })
	}
	return config
}

// informers starts so many informers, each a watch of its own, on the ConfigMap.
func startInformers(t *testing.T, ns, configMap string, count *atomic.Int64) *informed {
	t.Helper()
	informers := informerCount()
	seen := &informed{last: make([]int, informers), written: map[int]time.Time{}, changes: map[int]*change{}}
	clients := make([]*kubernetes.Clientset, informerClients)
	for i := range clients {
		client, err := kubernetes.NewForConfig(direct(t, count))
		if err != nil {
			t.Fatal(err)
		}
		clients[i] = client
	}
	synced := []cache.InformerSynced{}
	for i := range informers {
		client := clients[i%len(clients)].CoreV1().RESTClient()
		source := cache.NewListWatchFromClient(client, "configmaps", ns, fields.OneTermEqualSelector("metadata.name", configMap))
		informer := cache.NewSharedInformer(source, &corev1.ConfigMap{}, 0)
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { seen.see(i, numberOf(object)) },
			UpdateFunc: func(_, object any) { seen.see(i, numberOf(object)) },
		}); err != nil {
			t.Fatal(err)
		}
		go informer.RunWithContext(t.Context())
		synced = append(synced, informer.HasSynced)
	}
	eventually(t, 2*time.Minute, "the informers are synced", func(context.Context) error {
		waiting := 0
		for _, done := range synced {
			if !done() {
				waiting++
			}
		}
		if waiting > 0 {
			return fmt.Errorf("%d aren't", waiting)
		}
		return nil
	})
	return seen
}

// writer is the transport of who counts the ConfigMap up. client-go repeats a request that is answered
// with Retry-After by itself, a second later: a change counts from when it was sent for the last time.
type writer struct {
	next   http.RoundTripper
	seen   *informed
	number atomic.Int64
}

func (w *writer) RoundTrip(request *http.Request) (*http.Response, error) {
	number, sent := int(w.number.Load()), time.Now()
	w.seen.mutex.Lock()
	w.seen.written[number] = sent
	w.seen.change(number).attempts++
	w.seen.mutex.Unlock()
	response, err := w.next.RoundTrip(request)
	took := time.Since(sent).Round(time.Millisecond)
	w.seen.mutex.Lock()
	defer w.seen.mutex.Unlock()
	one := w.seen.change(number)
	one.answer = took
	switch {
	case err != nil:
		one.failures = append(one.failures, fmt.Sprintf("%v after %s", err, took))
	case response.StatusCode >= http.StatusBadRequest:
		one.failures = append(one.failures, fmt.Sprintf("%s (Retry-After %q) after %s",
			response.Status, response.Header.Get("Retry-After"), took))
	}
	return response, err
}

// write counts the ConfigMap up until ctx ends. A change counts from when it was asked for the last
// time: what the writer waits for is not the informers' delay.
func (s *informed) write(ctx context.Context, t *testing.T, ns, configMap string) {
	config, attempts := direct(t, nil), &writer{seen: s}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		attempts.next = next
		return attempts
	})
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Error(err)
		return
	}
	for number := 2; ctx.Err() == nil; number++ {
		began := time.Now()
		attempts.number.Store(int64(number))
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: configMap}, Data: map[string]string{"number": strconv.Itoa(number)}}
		for ctx.Err() == nil {
			attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
			_, err := client.CoreV1().ConfigMaps(ns).Update(attempt, object, metav1.UpdateOptions{})
			cancel()
			if err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(max(0, changeEvery-time.Since(began)))
	}
}

// caughtUp waits until every informer has seen the same change, and gives its number.
func (s *informed) caughtUp(t *testing.T, after int) int {
	t.Helper()
	slowest := 0
	eventually(t, time.Minute, "every informer goes on", func(context.Context) error {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		slowest = s.last[0]
		behind := 0
		for _, last := range s.last {
			slowest = min(slowest, last)
			if last <= after {
				behind++
			}
		}
		if behind > 0 {
			return fmt.Errorf("%d have seen nothing after change %d", behind, after)
		}
		return nil
	})
	return slowest
}

func (s *informed) newest() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	newest := 0
	for number := range s.written {
		newest = max(newest, number)
	}
	return newest
}

// watchesGoOn kills with informers on: the figure is the worst delay of an event for any of them. None
// may list anew.
func watchesGoOn(t *testing.T, what, open string, kill func(t *testing.T, number int) (heal func())) {
	ns := scratch(t)
	const configMap = "counter"
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: configMap}, Data: map[string]string{"number": "1"}}
	if _, err := mega.client.CoreV1().ConfigMaps(ns).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var lists atomic.Int64
	seen := startInformers(t, ns, configMap, &lists)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() { seen.write(ctx, t, ns, configMap) })
	defer func() {
		stop()
		writing.Wait()
	}()
	newRow(t, fmt.Sprintf("%s killed: %d informers go on", what, informerCount()), time.Second).notHeld(open).measure(func(r *round) {
		// A watch that is broken off in its first second is begun anew by client-go, with a pause.
		time.Sleep(3 * time.Second)
		seen.caughtUp(t, seen.newest())
		seen.mutex.Lock()
		usual := seen.worst
		seen.worst = 0
		seen.mutex.Unlock()
		before := lists.Load()
		var heal func()
		r.begin()
		heal = kill(t, r.number)
		// What was written in the next second and a half was written into the gap.
		time.Sleep(1500 * time.Millisecond)
		seen.caughtUp(t, seen.newest())
		seen.mutex.Lock()
		worst, lost, twice := seen.worst, seen.lost, seen.twice
		seen.lost, seen.twice = 0, 0
		seen.mutex.Unlock()
		r.endWith(worst)
		seen.remarkable(t, r.began, time.Second/2)
		t.Logf("before the kill the worst delay was %s", usual.Round(time.Millisecond))
		again := lists.Load() - before
		if again > 0 {
			t.Errorf("round %d: %d informers listed anew", r.number, again)
		}
		if lost > 0 || twice > 0 {
			t.Errorf("round %d: %d events were lost, %d came twice", r.number, lost, twice)
		}
		heal()
		seen.mutex.Lock()
		seen.worst = 0
		seen.mutex.Unlock()
	})
}

// doorProcesses gives the pod's processes but the guard's, which is in a container of its own.
func doorProcesses(t *testing.T, pod *corev1.Pod) []int {
	t.Helper()
	doors := []int{}
	for _, pid := range processes(t, pod) {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && !bytes.Contains(command, []byte("\x00guard\x00")) {
			doors = append(doors, pid)
		}
	}
	return doors
}

// TestFailoverFrontDoorKilled kills the front door's process in one of two pods.
func TestFailoverFrontDoorKilled(t *testing.T) {
	const open = "client-go dials once for each informer, and a thousand TLS handshakes keep two CPUs busy for a second or two"
	watchesGoOn(t, "front door replica", open, func(t *testing.T, number int) func() {
		running, err := pods(t.Context(), "watchcache")
		if err != nil || len(running) < 2 {
			t.Fatalf("%d front doors: %v", len(running), err)
		}
		victim := running[number%len(running)]
		mustKill(t, doorProcesses(t, &victim))
		return func() {
			renew(t, &victim)
			eventually(t, time.Minute, "two front doors are ready", func(ctx context.Context) error {
				return readyPods(ctx, "watchcache", 2)
			})
		}
	})
}

// TestFailoverAPIServerKilled gives the sample a second kube-apiserver, and kills one of the two.
func TestFailoverAPIServerKilled(t *testing.T) {
	management.mustKubectl(t, "", "-n", namespace, "scale", "megacluster", name, "--replicas=2")
	// Not by Cleanup: the test's context has ended by then.
	defer func() {
		_, _ = management.kubectl(context.Background(), "", "-n", namespace, "scale", "megacluster", name, "--replicas=1")
		waitReady(t, 2*time.Minute)
	}()
	two := func(ctx context.Context) error { return readyPods(ctx, "apiserver", 2) }
	eventually(t, 2*time.Minute, "two apiservers are ready", two)
	time.Sleep(3 * time.Second)
	watchesGoOn(t, "kube-apiserver", "", func(t *testing.T, number int) func() {
		running, err := pods(t.Context(), "apiserver")
		if err != nil {
			t.Fatal(err)
		}
		victim := running[number%len(running)]
		mustKill(t, processes(t, &victim))
		return func() {
			renew(t, &victim)
			eventually(t, 2*time.Minute, "two apiservers are ready", two)
			time.Sleep(2 * time.Second)
		}
	})
}

// readyPods says why there are not so many ready pods of the component, and no others.
func readyPods(ctx context.Context, component string, count int) error {
	running, err := pods(ctx, component)
	if err != nil {
		return err
	}
	ready := 0
	for i := range running {
		if podReady(&running[i]) {
			ready++
		}
	}
	if ready != count || len(running) != count {
		return fmt.Errorf("%d of %d pods are ready, not %d", ready, len(running), count)
	}
	return nil
}

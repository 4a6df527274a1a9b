package journey

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/transport"
)

// frontDoorMetrics reads what every front door says of itself.
func frontDoorMetrics(t *testing.T) []string {
	t.Helper()
	running, err := pods(t.Context(), "watchcache")
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return dialPod(ctx, address) }}}
	var texts []string
	for _, pod := range running {
		response, err := client.Get("http://" + pod.Status.PodIP + ":9443/metrics")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(body))
	}
	return texts
}

// TestTheCacheAnswers looks at what the front doors have answered themselves since the cluster
// began: its controllers, its scheduler and its nodes read through them.
func TestTheCacheAnswers(t *testing.T) {
	counted := map[string]int{}
	line := regexp.MustCompile(`(?m)^megacluster_watchcache_cache_(answers|passes)_total\{reason="([^"]+)"\} (\d+)$`)
	for _, text := range frontDoorMetrics(t) {
		for _, found := range line.FindAllStringSubmatch(text, -1) {
			count, err := strconv.Atoi(found[3])
			if err != nil {
				t.Fatal(err)
			}
			counted[found[1]+" "+found[2]] += count
		}
	}
	t.Logf("%v", counted)
	for _, verb := range []string{"get", "list", "watch"} {
		if counted["answers "+verb] == 0 {
			t.Errorf("no %s was answered from the cache", verb)
		}
	}
}

// beginnings counts the requests by which a client learns of a whole resource: lists, and watches
// that ask for the initial events.
type beginnings struct {
	inner http.RoundTripper
	count atomic.Int64
}

func (b *beginnings) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	if request.Method == http.MethodGet && (query.Get("watch") != "true" || query.Get("sendInitialEvents") == "true") {
		b.count.Add(1)
	}
	return b.inner.RoundTrip(request)
}

// TestInformersNeverRelist kills front doors at random while objects change: stock informers see
// every change once and in order, and go on from where they were without a new list.
func TestInformersNeverRelist(t *testing.T) {
	waitReady(t, 2*time.Minute)
	ns := scratch(t)
	config := rest.CopyConfig(mega.config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	var counter *beginnings
	config.Wrap(transport.WrapperFunc(func(inner http.RoundTripper) http.RoundTripper {
		counter = &beginnings{inner: inner}
		return counter
	}))
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}

	const objects = 5
	var mutex sync.Mutex
	var problems []string
	seen := [objects]int{}
	written := [objects]atomic.Int64{}
	var longest time.Duration
	var last time.Time
	look := func(o any) {
		object := o.(*corev1.ConfigMap)
		number, err := strconv.Atoi(strings.TrimPrefix(object.Name, "c-"))
		if err != nil {
			return
		}
		value, _ := strconv.Atoi(object.Data["n"])
		mutex.Lock()
		defer mutex.Unlock()
		if value != seen[number]+1 {
			problems = append(problems, fmt.Sprintf("%s: %d after %d", object.Name, value, seen[number]))
		}
		seen[number] = value
		if !last.IsZero() {
			longest = max(longest, time.Since(last))
		}
		last = time.Now()
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(ns))
	if _, err := factory.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    look,
		UpdateFunc: func(_, o any) { look(o) },
	}); err != nil {
		t.Fatal(err)
	}
	// Others that must not begin anew either.
	factory.Core().V1().Pods().Informer()
	factory.Core().V1().Nodes().Informer()
	factory.Coordination().V1().Leases().Informer()
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	before := counter.count.Load()

	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for number := range objects {
		writers.Go(func() {
			maps := mega.client.CoreV1().ConfigMaps(ns)
			name := fmt.Sprintf("c-%d", number)
			for value := 1; ctx.Err() == nil; value++ {
				for ctx.Err() == nil {
					// Sent again after an error it changes nothing more.
					var err error
					if value == 1 {
						object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": "1"}}
						_, err = maps.Create(ctx, object, metav1.CreateOptions{})
						if err != nil {
							if _, there := maps.Get(ctx, name, getOptions); there == nil {
								err = nil
							}
						}
					} else {
						patch := fmt.Appendf(nil, `{"data":{"n":"%d"}}`, value)
						_, err = maps.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
					}
					if err == nil {
						written[number].Store(int64(value))
						break
					}
					time.Sleep(50 * time.Millisecond)
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for round := range 4 {
		time.Sleep(2 * time.Second)
		running, err := pods(t.Context(), "watchcache")
		if err != nil {
			t.Fatal(err)
		}
		victim := &running[round%len(running)]
		if kill9(t, victim) == 0 {
			t.Errorf("nothing to kill in pod %s", victim.Name)
		}
		time.Sleep(2 * time.Second)
		waitReady(t, 2*time.Minute)
	}
	stop()
	writers.Wait()
	eventually(t, 30*time.Second, "every change is seen", func(context.Context) error {
		mutex.Lock()
		defer mutex.Unlock()
		for number := range objects {
			if int64(seen[number]) < written[number].Load() {
				return fmt.Errorf("c-%d: %d of %d", number, seen[number], written[number].Load())
			}
		}
		return nil
	})
	mutex.Lock()
	defer mutex.Unlock()
	if len(problems) > 0 {
		t.Errorf("%d changes were not seen in order, such as %s", len(problems), problems[0])
	}
	if again := counter.count.Load() - before; again > 0 {
		t.Errorf("informers began anew %d times", again)
	}
	total := 0
	for number := range objects {
		total += seen[number]
	}
	t.Logf("%d changes were seen once and in order over 4 kills of a front door; the longest pause was %s",
		total, longest.Round(10*time.Millisecond))
}

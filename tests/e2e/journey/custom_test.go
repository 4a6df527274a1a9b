package journey

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// What a widget holds that its schema doesn't name is taken away, and its colour is filled in.
const widgetDefinition = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.journey.example.com}
spec:
  group: journey.example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets, singular: widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              number: {type: integer}
              colour: {type: string, default: red}
`

var widgets = schema.GroupVersionResource{Group: "journey.example.com", Version: "v1", Resource: "widgets"}

// cacheWidgets has the front doors cache widgets, or not, beside what the spec has, and waits until
// all of them do.
func cacheWidgets(ctx context.Context, t *testing.T, wanted bool) {
	t.Helper()
	object, err := getMegaCluster(ctx, namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	cached, _, err := unstructured.NestedSlice(object.Object, "spec", "watchCache", "cached")
	if err != nil {
		t.Fatal(err)
	}
	cached = slices.DeleteFunc(cached, func(one any) bool { return one.(map[string]any)["resource"] == widgets.Resource })
	if wanted {
		cached = append(cached, map[string]any{"group": widgets.Group, "resource": widgets.Resource})
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"watchCache": map[string]any{"cached": cached}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := management.dynamic.Resource(megaClusters).Namespace(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 2*time.Minute, "all front doors are of the new spec", func(ctx context.Context) error {
		if err := readyPods(ctx, "watchcache", 2); err != nil {
			return err
		}
		running, err := pods(ctx, "watchcache")
		if err != nil {
			return err
		}
		for i := range running {
			has := strings.Contains(strings.Join(running[i].Spec.Containers[0].Args, " "), widgets.GroupResource().String())
			if has != wanted {
				return fmt.Errorf("%s caches widgets: %t", running[i].Name, has)
			}
		}
		return ready(ctx, namespace, name)
	})
	t.Logf("the front doors cache widgets (%t) after %s", wanted, took.Round(100*time.Millisecond))
}

// TestCustomResourcesAreCached defines a resource in the MegaCluster and has the operator cache it: the
// front doors then answer its reads with what kube-apiserver would, and informers of it never list anew
// while a front door is killed.
func TestCustomResourcesAreCached(t *testing.T) {
	mega.mustKubectl(t, widgetDefinition, "apply", "-f", "-")
	defer func() {
		_, _ = mega.kubectl(context.WithoutCancel(t.Context()), "", "delete", "customresourcedefinition", "widgets.journey.example.com", "--wait=false")
	}()
	mega.mustKubectl(t, "", "wait", "customresourcedefinition/widgets.journey.example.com", "--for=condition=Established", "--timeout=20s")
	ns := scratch(t)
	quiet := rest.CopyConfig(mega.config)
	quiet.WarningHandler = rest.NoWarnings{}
	maker, err := dynamic.NewForConfig(quiet)
	if err != nil {
		t.Fatal(err)
	}
	for number := range 20 {
		widget := widget(fmt.Sprintf("w-%d", number), number)
		widget.SetLabels(map[string]string{"third": strconv.Itoa(number % 3)})
		if err := unstructured.SetNestedField(widget.Object, "goes", "spec", "unknown"); err != nil {
			t.Fatal(err)
		}
		if _, err := maker.Resource(widgets).Namespace(ns).Create(t.Context(), widget, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	cacheWidgets(t.Context(), t, true)
	defer cacheWidgets(context.WithoutCancel(t.Context()), t, false)
	twoFrontDoors(t)

	var lists atomic.Int64
	config := direct(t, &lists)
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	// get reads as a client in Go does, and says whether a front door answered: kube-apiserver names the
	// priority of each request that it answers.
	get := func(ctx context.Context, path string) (body []byte, cached bool, err error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+path, nil)
		if err != nil {
			return nil, false, err
		}
		request.Header.Set("Accept", "application/json")
		response, err := transport.RoundTrip(request)
		if err != nil {
			return nil, false, err
		}
		defer response.Body.Close()
		if body, err = io.ReadAll(io.LimitReader(response.Body, 16<<20)); err != nil {
			return nil, false, err
		}
		if response.StatusCode != http.StatusOK {
			return nil, false, fmt.Errorf("%s: %s: %s", path, response.Status, body)
		}
		return body, response.Header.Get("X-Kubernetes-Pf-Prioritylevel-Uid") == "", nil
	}
	inNamespace := "/apis/journey.example.com/v1/namespaces/" + ns + "/widgets"
	paths := []string{inNamespace, "/apis/journey.example.com/v1/widgets", inNamespace + "?labelSelector=third%3D1", inNamespace + "/w-7"}
	eventually(t, 20*time.Second, "a front door answers for widgets", func(ctx context.Context) error {
		for _, path := range paths {
			if _, cached, err := get(ctx, path); err != nil || !cached {
				return fmt.Errorf("%s: by a front door: %t, %v", path, cached, err)
			}
		}
		return nil
	})
	const each = 25
	before, passed := cacheAnswers(t)
	for range each {
		for _, path := range paths {
			if _, cached, err := get(t.Context(), path); err != nil || !cached {
				t.Errorf("%s: by a front door: %t, %v", path, cached, err)
			}
		}
	}
	answers, passes := cacheAnswers(t)
	t.Logf("%d reads: the front doors answered %.0f, and passed on %.0f", each*len(paths), answers-before, passes-passed)
	if answers-before < each*float64(len(paths)) {
		t.Errorf("the front doors answered %.0f of %d reads", answers-before, each*len(paths))
	}
	for _, path := range paths {
		ours, _, err := get(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		// With that the cache leaves it to kube-apiserver, whose answer does not depend on it.
		query := "?pretty=0"
		if strings.Contains(path, "?") {
			query = "&pretty=0"
		}
		theirs, cached, err := get(t.Context(), path+query)
		if err != nil || cached {
			t.Fatalf("%s: by a front door: %t, %v", path+query, cached, err)
		}
		if bytes.Contains(ours, []byte("goes")) || !bytes.Contains(ours, []byte(`"colour":"red"`)) {
			t.Errorf("%s: not by the schema: %s", path, ours)
		}
		// Others write meanwhile: a list's own version is newer.
		if !bytes.Equal(withoutListVersion(t, ours), withoutListVersion(t, theirs)) {
			t.Errorf("%s: the front door says\n%s\nand kube-apiserver\n%s", path, ours, theirs)
		}
	}

	histories, synced := []*history{}, []cache.InformerSynced{}
	for range 6 {
		client, err := dynamic.NewForConfig(direct(t, &lists))
		if err != nil {
			t.Fatal(err)
		}
		factory, seen := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, ns, nil), &history{last: map[string]int{}}
		informer := factory.ForResource(widgets).Informer()
		churns := func(object any) bool {
			widget, is := object.(*unstructured.Unstructured)
			return !is || strings.HasPrefix(widget.GetName(), "churn-")
		}
		if _, err := informer.AddEventHandler(seen.handler(churns)); err != nil {
			t.Fatal(err)
		}
		factory.Start(t.Context().Done())
		histories, synced = append(histories, seen), append(synced, informer.HasSynced)
	}
	if !cache.WaitForCacheSync(t.Context().Done(), synced...) {
		t.Fatal("the informers are not synced")
	}
	time.Sleep(2 * time.Second)
	first := lists.Load()
	client, err := dynamic.NewForConfig(direct(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	last := churnAll(t, []string{"churn-0", "churn-1"}, func(name string) churned { return churnedWidget(client.Resource(widgets).Namespace(ns), name) }, func() {
		time.Sleep(time.Second)
		victim := killFrontDoor(t)
		t.Logf("%s killed, ready again after %s", victim.Name, twoFrontDoors(t).Round(100*time.Millisecond))
	})
	changes := sawAll(t, histories, last)
	if again := lists.Load() - first; again > 0 {
		t.Errorf("%d lists after the first", again)
	}
	t.Logf("%d changes, each seen once by each of %d informers", changes, len(histories))
}

// withoutListVersion gives an answer without the version of the whole list.
func withoutListVersion(t *testing.T, answer []byte) []byte {
	t.Helper()
	var list struct {
		Kind     string          `json:"kind"`
		Metadata metav1.ListMeta `json:"metadata"`
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		t.Fatal(err)
	}
	if list.Kind != "WidgetList" {
		return answer
	}
	// A list's metadata come after its items, as fields of all custom resources are in order.
	version := fmt.Appendf(nil, `"resourceVersion":"%s"`, list.Metadata.ResourceVersion)
	at := bytes.LastIndex(answer, version)
	if at < 0 {
		t.Fatalf("no version: %s", answer)
	}
	return slices.Concat(answer[:at], answer[at+len(version):])
}

func widget(name string, number int) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "journey.example.com/v1", "kind": "Widget",
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"number": int64(number)},
	}}
}

// churnedWidget is a widget.
func churnedWidget(widgets dynamic.ResourceInterface, name string) churned {
	return churned{
		create: func(ctx context.Context, number int) error {
			_, err := widgets.Create(ctx, widget(name, number), metav1.CreateOptions{})
			return err
		},
		// Without a version, which an update of a custom resource must have.
		update: func(ctx context.Context, number int) error {
			patch := fmt.Appendf(nil, `{"spec":{"number":%d}}`, number)
			_, err := widgets.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		},
		remove: func(ctx context.Context) error { return widgets.Delete(ctx, name, metav1.DeleteOptions{}) },
	}
}

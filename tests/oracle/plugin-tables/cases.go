package main

import (
	"encoding/json"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"megacluster.io/tests/oracle/plugin-tables/recorder"
)

// Case is a cluster and a pod to place in it, as the oracle reads it.
type Case struct {
	Nodes []*v1.Node `json:"nodes"`
	Pods  []*v1.Pod  `json:"pods"`
	Pod   *v1.Pod    `json:"pod"`
	recorder.Objects
	Configuration string `json:"configuration"`
	Preempt       bool   `json:"preempt"`
	Evict         bool   `json:"evict"`
}

// unnamed is the name of a node that has none in its test.
const unnamed = "unnamed"

// called is the name of the node that an event is about.
func called(event *recorder.Event) string {
	switch {
	case event.Node == nil:
		return ""
	case event.Node.Node != nil && event.Node.Node.Name != "":
		return event.Node.Node.Name
	case event.Node.Node == nil && len(event.Snapshot) == 1:
		// Only the pods of the only node.
		return nameOf(&event.Snapshot[0])
	}
	return unnamed
}

func nameOf(node *recorder.Node) string {
	if node.Node == nil || node.Node.Name == "" {
		return unnamed
	}
	return node.Node.Name
}

// builder makes one cluster of all that a plugin was handed or could look at.
type builder struct {
	made  Case
	nodes map[string]*v1.Node
	// Pods by identity and node.
	pods map[[2]string]*v1.Pod
	uids map[types.UID]bool
}

func newBuilder(event *recorder.Event) *builder {
	b := &builder{
		nodes: map[string]*v1.Node{}, pods: map[[2]string]*v1.Pod{}, uids: map[types.UID]bool{},
	}
	b.made.Objects = event.Objects
	b.made.Pods = []*v1.Pod{}
	b.made.Pod = event.Pod
	b.identify(b.made.Pod, "incoming")
	return b
}

// identify gives an object of a test what it has on an apiserver.
func (b *builder) identify(pod *v1.Pod, name string) {
	if pod.Name == "" {
		pod.Name = name
	}
	if pod.UID == "" || b.uids[pod.UID] {
		pod.UID = types.UID(fmt.Sprintf("%s-%d", name, len(b.uids)))
	}
	b.uids[pod.UID] = true
}

func (b *builder) add(event *recorder.Event) {
	for _, nodes := range [][]recorder.Node{event.Snapshot, event.Nodes} {
		for i := range nodes {
			b.node(nameOf(&nodes[i]), &nodes[i])
		}
	}
	if event.Node != nil {
		b.node(called(event), event.Node)
	}
}

func (b *builder) node(name string, node *recorder.Node) {
	if b.nodes[name] == nil {
		made := node.Node.DeepCopy()
		if made == nil {
			made = &v1.Node{}
		}
		made.Name = name
		b.nodes[name] = made
		b.made.Nodes = append(b.made.Nodes, made)
	}
	for _, pod := range node.Pods {
		key := [2]string{pod.Identity, name}
		if b.pods[key] != nil {
			continue
		}
		placed := pod.Pod.DeepCopy()
		placed.Spec.NodeName = name
		b.identify(placed, "placed")
		b.made.Pods = append(b.made.Pods, placed)
		b.pods[key] = placed
	}
}

func (b *builder) victims(node string, event *recorder.Event) *Victims {
	victims := &Victims{Pods: []string{}, Violations: event.Violations}
	for _, identity := range event.Evicted {
		uid := "unknown"
		if pod := b.pods[[2]string{identity, node}]; pod != nil {
			uid = string(pod.UID)
		}
		victims.Pods = append(victims.Pods, uid)
	}
	return victims
}

// build ends a case: nodes that weren't handed over for scoring are cordoned, and only the plugin runs.
func (b *builder) build(c *call) *Case {
	plugin := c.events[0].Plugin
	on := []string{plugin}
	if plugin == "DefaultPreemption" {
		b.made.Evict = true
		// In the order of the default profile. What else filters is the test's own.
		on = nil
		for _, one := range plugins {
			if slices.Contains(c.events[0].Filters, one.Name) && !slices.Contains(on, one.Name) {
				on = append(on, one.Name)
			}
		}
		on = append(on, plugin)
	} else if c.events[0].Step != "PreFilter" && c.events[0].Step != "Filter" {
		scored := map[string]bool{}
		for _, event := range c.events {
			for i := range event.Nodes {
				scored[nameOf(&event.Nodes[i])] = true
			}
			scored[called(&event)] = true
		}
		for name, node := range b.nodes {
			if !scored[name] {
				node.Spec.Unschedulable = true
				on = []string{"NodeUnschedulable", plugin}
			}
		}
	}
	b.made.Configuration = configuration(on, plugin, c.events[0].Arguments)
	if b.made.Nodes == nil {
		// Without any node nobody is asked.
		b.made.Nodes = []*v1.Node{{ObjectMeta: metav1.ObjectMeta{Name: unnamed}}}
	}
	return &b.made
}

func configuration(on []string, plugin string, arguments json.RawMessage) string {
	type named struct {
		Name string          `json:"name"`
		Args json.RawMessage `json:"args,omitempty"`
	}
	enabled := []named{{Name: "SchedulingGates"}, {Name: "PrioritySort"}}
	for _, name := range on {
		enabled = append(enabled, named{Name: name})
	}
	enabled = append(enabled, named{Name: "DefaultBinder"})
	profile := map[string]any{
		"plugins": map[string]any{"multiPoint": map[string]any{
			"enabled": enabled, "disabled": []named{{Name: "*"}},
		}},
	}
	// Some tests hand over those of another plugin.
	var kind struct {
		Kind string `json:"kind"`
	}
	if json.Unmarshal(arguments, &kind) == nil && kind.Kind == plugin+"Args" {
		profile["pluginConfig"] = []named{{plugin, arguments}}
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
		"profiles": []any{profile},
	})
	if err != nil {
		panic(err)
	}
	return string(text)
}

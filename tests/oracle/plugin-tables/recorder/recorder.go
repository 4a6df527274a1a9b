// Package recorder writes down what the tests of Kubernetes' plugins ask their plugins, and what
// those answer. It is compiled into a copy of Kubernetes whose plugins call it: see ../instrument.go.
package recorder

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sync"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	configv1 "k8s.io/kube-scheduler/config/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
)

// Mark begins the line of an event among what else the tests print.
const Mark = "@recorded "

// Event is one call of a plugin.
type Event struct {
	Plugin string `json:"plugin"`
	// Instance tells the plugins of one process apart.
	Instance int    `json:"instance"`
	Step     string `json:"step"`
	// Arguments that the plugin was made with, as in a KubeSchedulerConfiguration.
	Arguments json.RawMessage `json:"arguments,omitempty"`
	// Gates are the plugin's own switches for features, by field.
	Gates map[string]bool `json:"gates,omitempty"`
	Pod   *v1.Pod         `json:"pod,omitempty"`
	// Node that the plugin was asked about.
	Node *Node `json:"node,omitempty"`
	// Nodes that were handed over with the call, and Snapshot those that the plugin can look at.
	Nodes    []Node  `json:"nodes,omitempty"`
	Snapshot []Node  `json:"snapshot,omitempty"`
	Objects  Objects `json:"objects"`
	// What the plugin said.
	Status Status           `json:"status"`
	Score  int64            `json:"score,omitempty"`
	Scores map[string]int64 `json:"scores,omitempty"`
	Names  []string         `json:"names,omitempty"`
	// Identities of pods that would have to go, and how many of them a budget protects.
	Evicted    []string `json:"evicted,omitempty"`
	Violations int      `json:"violations,omitempty"`
	// Filters that run beside a preemption.
	Filters []string `json:"filters,omitempty"`

	hidden bool
}

// Status of a call.
type Status struct {
	Code    string   `json:"code"`
	Reasons []string `json:"reasons,omitempty"`
}

// Node is a node with its pods.
type Node struct {
	Node *v1.Node `json:"node"`
	Pods []Pod    `json:"pods"`
}

// Pod is a pod on a node; tests put one pod into several structures.
type Pod struct {
	Identity string  `json:"identity"`
	Pod      *v1.Pod `json:"pod"`
}

var (
	mutex     sync.Mutex
	instances = map[any]int{}
	arguments = map[any]json.RawMessage{}
	// inside counts calls that have not answered: what they call is not recorded.
	inside int
)

// Made notes which arguments a plugin was made with.
func Made(plugin any, object runtime.Object) {
	if object == nil || plugin == nil || reflect.ValueOf(plugin).IsNil() {
		return
	}
	codec := scheme.Codecs.LegacyCodec(configv1.SchemeGroupVersion)
	text, err := runtime.Encode(codec, object)
	if err != nil {
		text, _ = json.Marshal(fmt.Sprintf("%T: %v", object, err))
	}
	mutex.Lock()
	defer mutex.Unlock()
	arguments[plugin] = text
}

// Call begins an event. All that the plugin can look at is read before it answers.
func Call(name string, plugin any, step string, pod *v1.Pod) *Event {
	mutex.Lock()
	defer mutex.Unlock()
	inside++
	// Nodes are tried for preemption side by side.
	if inside > 1 && step != "SelectVictims" {
		return &Event{hidden: true}
	}
	if _, known := instances[plugin]; !known {
		instances[plugin] = len(instances)
	}
	event := &Event{
		Plugin: name, Instance: instances[plugin], Step: step, Arguments: arguments[plugin],
		Pod: pod.DeepCopy(),
	}
	look(plugin, event)
	return event
}

// On names the node that the plugin is asked about.
func (e *Event) On(node fwk.NodeInfo) *Event {
	if node != nil && !reflect.ValueOf(node).IsNil() {
		one := described(node)
		e.Node = &one
	}
	return e
}

// OnBare names a node of whose pods nothing is known.
func (e *Event) OnBare(node *v1.Node) *Event {
	e.Node = &Node{Node: node.DeepCopy()}
	return e
}

// Protected notes the budgets that are handed over.
func (e *Event) Protected(budgets []*policyv1.PodDisruptionBudget) *Event {
	e.Objects.Budgets = budgets
	return e
}

// Beside notes which filters run in the framework of a preemption.
func (e *Event) Beside(handle fwk.Handle) *Event {
	if framework, ok := handle.(interface{ ListPlugins() *config.Plugins }); ok {
		for _, plugin := range framework.ListPlugins().Filter.Enabled {
			e.Filters = append(e.Filters, plugin.Name)
		}
	}
	return e
}

// Victims notes which pods would have to go.
func (e *Event) Victims(pods []*v1.Pod, violations int) *Event {
	for _, pod := range pods {
		e.Evicted = append(e.Evicted, fmt.Sprintf("%p", pod))
	}
	e.Violations = violations
	return e
}

// Among names the nodes that are handed over.
func (e *Event) Among(nodes []fwk.NodeInfo) *Event {
	for _, node := range nodes {
		if node != nil && !reflect.ValueOf(node).IsNil() {
			e.Nodes = append(e.Nodes, described(node))
		}
	}
	return e
}

// Scored notes what the nodes' scores came to.
func (e *Event) Scored(scores fwk.NodeScoreList) *Event {
	e.Scores = map[string]int64{}
	for _, score := range scores {
		e.Scores[score.Name] = score.Score
	}
	return e
}

// Only notes the nodes that PreFilter leaves.
func (e *Event) Only(result *fwk.PreFilterResult) *Event {
	if !result.AllNodes() {
		e.Names = result.NodeNames.UnsortedList()
	}
	return e
}

// Answered ends an event.
func (e *Event) Answered(status *fwk.Status) {
	e.Status.Code = status.Code().String()
	switch {
	case status.Code() == fwk.Error:
		e.Status.Reasons = []string{status.Message()}
	case status != nil:
		e.Status.Reasons = status.Reasons()
	}
	mutex.Lock()
	defer mutex.Unlock()
	inside--
	if e.hidden {
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	// The line before may not have ended.
	fmt.Fprintf(os.Stdout, "\n%s%s\n", Mark, line)
}

func described(info fwk.NodeInfo) Node {
	node := Node{Node: info.Node().DeepCopy()}
	for _, pod := range info.GetPods() {
		one := pod.GetPod()
		node.Pods = append(node.Pods, Pod{fmt.Sprintf("%p", one), one.DeepCopy()})
	}
	return node
}

// Oracle answers, with kube-scheduler's own framework, where a pod may go and with which scores.
//
// It reads one case a line from standard input and writes one answer a line: see Case and Answer.
// Only the plugins that megacluster-scheduler implements run; they run in the order and with the
// weights and arguments of the default profile, on every node.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8scache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultpreemption"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	"k8s.io/kubernetes/pkg/scheduler/framework/preemption"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
)

var supported = sets.New(
	names.SchedulingGates, names.PrioritySort, names.NodeUnschedulable, names.NodeName,
	names.TaintToleration, names.NodeAffinity, names.NodePorts, names.NodeResourcesFit,
	names.VolumeRestrictions, names.NodeVolumeLimits, names.VolumeBinding, names.VolumeZone,
	names.NodeResourcesBalancedAllocation, names.PodTopologySpread, names.InterPodAffinity,
	names.ImageLocality, names.DefaultPreemption, names.DefaultBinder,
)

// Case is a cluster and a pod to place in it.
type Case struct {
	Nodes []*v1.Node `json:"nodes"`
	// Pods on nodes.
	Pods []*v1.Pod `json:"pods"`
	// Pod to place.
	Pod *v1.Pod `json:"pod"`
	// What the pods are looked up in.
	Namespaces             []*v1.Namespace             `json:"namespaces"`
	Services               []*v1.Service               `json:"services"`
	ReplicationControllers []*v1.ReplicationController `json:"replicationControllers"`
	ReplicaSets            []*appsv1.ReplicaSet        `json:"replicaSets"`
	StatefulSets           []*appsv1.StatefulSet       `json:"statefulSets"`
	// What the pods' volumes hang on.
	Claims     []*v1.PersistentVolumeClaim     `json:"claims"`
	Volumes    []*v1.PersistentVolume          `json:"volumes"`
	Classes    []*storagev1.StorageClass       `json:"classes"`
	Drivers    []*storagev1.CSIDriver          `json:"drivers"`
	Capacities []*storagev1.CSIStorageCapacity `json:"capacities"`
	// What nodes' drivers say, and what is attached to nodes.
	CSINodes    []*storagev1.CSINode          `json:"csiNodes"`
	Attachments []*storagev1.VolumeAttachment `json:"attachments"`
	// Preempt says whether the message shall tell what came of preemption. Only for a pod that
	// has no victims: an oracle evicts nobody.
	Preempt bool `json:"preempt"`
	// Evict asks where preemption makes room.
	Evict bool `json:"evict"`
	// Budgets that protect pods.
	Budgets []*policyv1.PodDisruptionBudget `json:"budgets"`
	// Nominees are pods without a node that are nominated to one.
	Nominees []*v1.Pod `json:"nominees"`
	// Configuration is a KubeSchedulerConfiguration; empty for the default.
	Configuration string `json:"configuration"`
}

// Answer is what the framework says.
type Answer struct {
	// Scores of the feasible nodes, by node and plugin, weighted.
	Scores map[string]map[string]int64 `json:"scores"`
	// Rejected nodes.
	Rejected map[string]Rejection `json:"rejected"`
	// Message of the FailedScheduling event; empty when a node is feasible.
	Message string `json:"message"`
	// Plugins to blame.
	Plugins []string `json:"plugins"`
	// Candidates for preemption by node, and the one that was taken.
	Candidates map[string]Candidate `json:"candidates"`
	Chosen     string               `json:"chosen"`
	// Error of the framework itself.
	Error string `json:"error"`
}

// Rejection of one node.
type Rejection struct {
	Plugin       string   `json:"plugin"`
	Reasons      []string `json:"reasons"`
	Unresolvable bool     `json:"unresolvable"`
}

// Candidate is a node that evictions make room on.
type Candidate struct {
	Victims    []string `json:"victims"`
	Violations int64    `json:"violations"`
}

// lister hands the framework, which keeps it for good, the snapshot of the case at hand.
type lister struct{ fwk.SharedLister }

// nominator knows the nominees of the case at hand. The queue's own looks them up among the pods that
// it holds, and there are none.
type nominator struct {
	fwk.PodNominator
	byNode map[string][]fwk.PodInfo
}

// NominatedPodsForNode overrides the queue's.
func (n *nominator) NominatedPodsForNode(node string) []fwk.PodInfo { return n.byNode[node] }

type oracle struct {
	client    kubernetes.Interface
	defaults  framework.Framework
	framework framework.Framework
	lister    *lister
	informers informers.SharedInformerFactory
	nominator *nominator
}

func newOracle(ctx context.Context) (*oracle, error) {
	metrics.Register()
	client := fake.NewClientset()
	o := &oracle{
		client:    client,
		lister:    &lister{cache.NewEmptySnapshot()},
		informers: scheduler.NewInformerFactory(client, 0),
	}
	o.nominator = &nominator{PodNominator: queue.NewSchedulingQueue(nil, o.informers)}
	defaults, err := latest.Default()
	if err != nil {
		return nil, err
	}
	o.defaults, err = o.newFramework(ctx, defaults)
	return o, err
}

// newFramework runs the first profile, but for the plugins that aren't supported.
func (o *oracle) newFramework(
	ctx context.Context, configuration *config.KubeSchedulerConfiguration,
) (framework.Framework, error) {
	profile := configuration.Profiles[0]
	for _, set := range []*config.PluginSet{&profile.Plugins.MultiPoint, &profile.Plugins.Score} {
		enabled := set.Enabled
		set.Enabled = nil
		for _, plugin := range enabled {
			if supported.Has(plugin.Name) {
				set.Enabled = append(set.Enabled, plugin)
			}
		}
	}
	arguments := profile.PluginConfig
	profile.PluginConfig = nil
	for _, argument := range arguments {
		if supported.Has(argument.Name) {
			profile.PluginConfig = append(profile.PluginConfig, argument)
		}
	}
	return runtime.NewFramework(ctx, plugins.NewInTreeRegistry(), &profile,
		runtime.WithClientSet(o.client),
		runtime.WithInformerFactory(o.informers),
		runtime.WithSnapshotSharedLister(o.lister),
		runtime.WithPodNominator(o.nominator),
		runtime.WithSharedCSIManager(
			nodevolumelimits.NewCSIManager(o.informers.Storage().V1().CSINodes().Lister())),
	)
}

// frameworkFor reads the configuration of a case as kube-scheduler reads its --config.
func (o *oracle) frameworkFor(ctx context.Context, text string) (framework.Framework, error) {
	if text == "" {
		return o.defaults, nil
	}
	object, _, err := scheme.Codecs.UniversalDecoder().Decode([]byte(text), nil, nil)
	if err != nil {
		return nil, err
	}
	configuration, ok := object.(*config.KubeSchedulerConfiguration)
	if !ok {
		return nil, fmt.Errorf("no KubeSchedulerConfiguration: %T", object)
	}
	return o.newFramework(ctx, configuration)
}

func (o *oracle) answer(ctx context.Context, c *Case) (*Answer, error) {
	var err error
	if o.framework, err = o.frameworkFor(ctx, c.Configuration); err != nil {
		return nil, err
	}
	o.lister.SharedLister = cache.NewSnapshot(c.Pods, c.Nodes)
	core, apps, storage := o.informers.Core().V1(), o.informers.Apps().V1(), o.informers.Storage().V1()
	for _, err := range []error{
		replace(core.Pods().Informer(), append([]*v1.Pod{c.Pod}, c.Nominees...)),
		replace(o.informers.Policy().V1().PodDisruptionBudgets().Informer(), c.Budgets),
		replace(core.Namespaces().Informer(), c.Namespaces),
		replace(core.Services().Informer(), c.Services),
		replace(core.ReplicationControllers().Informer(), c.ReplicationControllers),
		replace(apps.ReplicaSets().Informer(), c.ReplicaSets),
		replace(apps.StatefulSets().Informer(), c.StatefulSets),
		replace(core.PersistentVolumeClaims().Informer(), c.Claims),
		replace(core.PersistentVolumes().Informer(), c.Volumes),
		replace(storage.StorageClasses().Informer(), c.Classes),
		replace(storage.CSIDrivers().Informer(), c.Drivers),
		replace(storage.CSIStorageCapacities().Informer(), c.Capacities),
		replace(storage.CSINodes().Informer(), c.CSINodes),
		replace(storage.VolumeAttachments().Informer(), c.Attachments),
	} {
		if err != nil {
			return nil, err
		}
	}
	o.nominator.byNode = map[string][]fwk.PodInfo{}
	for _, nominee := range c.Nominees {
		info, err := framework.NewPodInfo(nominee)
		if err != nil {
			return nil, err
		}
		node := nominee.Status.NominatedNodeName
		o.nominator.byNode[node] = append(o.nominator.byNode[node], info)
	}
	answer := &Answer{Scores: map[string]map[string]int64{}, Rejected: map[string]Rejection{}}
	if len(c.Nodes) == 0 {
		answer.Message = scheduler.ErrNoNodesAvailable.Error()
		return answer, nil
	}
	state := framework.NewCycleState()
	diagnosis := framework.Diagnosis{NodeToStatus: framework.NewDefaultNodeToStatus()}
	feasible, err := o.filter(ctx, state, c, &diagnosis, answer)
	if err != nil {
		return nil, err
	}
	answer.Plugins = sets.List(diagnosis.UnschedulablePlugins)
	if len(feasible) > 0 {
		return answer, o.score(ctx, state, c.Pod, feasible, answer)
	}
	if c.Evict {
		found, err := o.evict(ctx, state, c, diagnosis.NodeToStatus, answer)
		if err != nil {
			return nil, err
		}
		c.Preempt = !found
	}
	if c.Preempt {
		_, status := o.framework.RunPostFilterPlugins(ctx, state, c.Pod, diagnosis.NodeToStatus)
		if status.IsSuccess() || !status.IsRejected() {
			return nil, fmt.Errorf("preemption: %v", status.AsError())
		}
		diagnosis.PostFilterMsg = status.Message()
	}
	answer.Message = (&framework.FitError{
		Pod: c.Pod, NumAllNodes: len(c.Nodes), Diagnosis: diagnosis,
	}).Error()
	return answer, nil
}

// evict tries preemption on every node that it may help, and evicts nobody. Whether it found one.
func (o *oracle) evict(
	ctx context.Context, state fwk.CycleState, c *Case, statuses fwk.NodeToStatusReader, answer *Answer,
) (bool, error) {
	plugin, err := defaultpreemption.New(ctx, &config.DefaultPreemptionArgs{
		MinCandidateNodesPercentage: 100, MinCandidateNodesAbsolute: 100,
	}, o.framework, feature.Features{})
	if err != nil {
		return false, err
	}
	nominated := statuses.Get(c.Pod.Status.NominatedNodeName)
	if ok, _ := plugin.PodEligibleToPreemptOthers(ctx, c.Pod, nominated); !ok {
		return false, nil
	}
	nodes, err := statuses.NodesForStatusCode(o.lister.NodeInfos(), fwk.Unschedulable)
	if err != nil || len(nodes) == 0 {
		return false, err
	}
	evaluator := preemption.NewEvaluator("oracle", o.framework, plugin, plugin.Executor)
	candidates, _, err := evaluator.DryRunPreemption(ctx, state, c.Pod, nodes, c.Budgets, 0, int32(len(nodes)))
	if err != nil || len(candidates) == 0 {
		return false, err
	}
	answer.Candidates = map[string]Candidate{}
	for _, candidate := range candidates {
		victims := []string{}
		for _, pod := range candidate.Victims().Pods {
			victims = append(victims, string(pod.UID))
		}
		answer.Candidates[candidate.Name()] = Candidate{victims, candidate.Victims().NumPDBViolations}
	}
	answer.Chosen = evaluator.SelectCandidate(ctx, candidates).Name()
	return true, nil
}

// replace makes these objects all that an informer knows.
func replace[T any](informer k8scache.SharedIndexInformer, objects []T) error {
	all := make([]any, len(objects))
	for i, object := range objects {
		all[i] = object
	}
	return informer.GetIndexer().Replace(all, "")
}

// filter runs PreFilter and, on each node that it leaves, Filter, as the scheduler's
// findNodesThatFitPod does.
func (o *oracle) filter(
	ctx context.Context, state fwk.CycleState, c *Case, diagnosis *framework.Diagnosis, answer *Answer,
) ([]fwk.NodeInfo, error) {
	chosen, status, blamed := o.framework.RunPreFilterPlugins(ctx, state, c.Pod)
	diagnosis.UnschedulablePlugins = blamed
	if !status.IsSuccess() {
		if !status.IsRejected() {
			return nil, status.AsError()
		}
		diagnosis.NodeToStatus.SetAbsentNodesStatus(status)
		diagnosis.PreFilterMsg = status.Message()
		diagnosis.AddPluginStatus(status)
		return nil, nil
	}
	if !chosen.AllNodes() {
		diagnosis.NodeToStatus.SetAbsentNodesStatus(fwk.NewStatus(fwk.UnschedulableAndUnresolvable,
			fmt.Sprintf("node(s) didn't satisfy plugin(s) %v", sets.List(blamed))))
	}
	nodes, err := o.lister.NodeInfos().List()
	if err != nil {
		return nil, err
	}
	var feasible []fwk.NodeInfo
	for _, node := range nodes {
		name := node.Node().Name
		if !chosen.AllNodes() && !chosen.NodeNames.Has(name) {
			continue
		}
		status := o.framework.RunFilterPluginsWithNominatedPods(ctx, state, c.Pod, node)
		if status.IsSuccess() {
			feasible = append(feasible, node)
			continue
		}
		if !status.IsRejected() {
			return nil, status.AsError()
		}
		diagnosis.NodeToStatus.Set(name, status)
		diagnosis.AddPluginStatus(status)
		answer.Rejected[name] = Rejection{
			Plugin:       status.Plugin(),
			Reasons:      status.Reasons(),
			Unresolvable: status.Code() == fwk.UnschedulableAndUnresolvable,
		}
	}
	return feasible, nil
}

func (o *oracle) score(
	ctx context.Context, state fwk.CycleState, pod *v1.Pod, nodes []fwk.NodeInfo, answer *Answer,
) error {
	if status := o.framework.RunPreScorePlugins(ctx, state, pod, nodes); !status.IsSuccess() {
		return status.AsError()
	}
	scored, status := o.framework.RunScorePlugins(ctx, state, pod, nodes)
	if !status.IsSuccess() {
		return status.AsError()
	}
	for _, node := range scored {
		scores := map[string]int64{}
		for _, plugin := range node.Scores {
			scores[plugin.Name] = plugin.Score
		}
		answer.Scores[node.Name] = scores
	}
	return nil
}

func run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o, err := newOracle(ctx)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(out)
	decoder := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	for decoder.More() {
		var c Case
		if err := decoder.Decode(&c); err != nil {
			return err
		}
		answer, err := o.answer(ctx, &c)
		if err != nil {
			answer = &Answer{
				Scores: map[string]map[string]int64{}, Rejected: map[string]Rejection{},
				Error: err.Error(),
			}
		}
		if err := encoder.Encode(answer); err != nil {
			return err
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	// Notices about each profile.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

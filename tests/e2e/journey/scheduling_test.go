package journey

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// podSpec asks for a little; nothing runs it but kwok.
func podSpec(cpu string) corev1.PodSpec {
	return corev1.PodSpec{
		Containers: []corev1.Container{{
			Name: "main", Image: "registry.k8s.io/pause:3.6",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("64Mi"),
			}},
		}},
		// kwok's nodes are tainted so that nobody's real pods land there.
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
	}
}

func deployment(ns, deploymentName string, replicas int32, spec corev1.PodSpec) *appsv1.Deployment {
	labels := map[string]string{"app": deploymentName}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: deploymentName},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}
}

func createDeployment(t *testing.T, d *appsv1.Deployment) {
	t.Helper()
	if _, err := mega.client.AppsV1().Deployments(d.Namespace).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func waitRunning(t *testing.T, ns, deploymentName string, replicas int, timeout time.Duration) time.Duration {
	t.Helper()
	return eventually(t, timeout, fmt.Sprintf("%d pods of %s Running", replicas, deploymentName), func(ctx context.Context) error {
		list, err := mega.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + deploymentName})
		if err != nil {
			return err
		}
		running := 0
		for i := range list.Items {
			if list.Items[i].Status.Phase == corev1.PodRunning && list.Items[i].DeletionTimestamp == nil {
				running++
			}
		}
		if running != replicas {
			return fmt.Errorf("%d of %d", running, replicas)
		}
		return nil
	})
}

// checkNodes holds what is bound to each node against what the node allows.
func checkNodes(t *testing.T) {
	t.Helper()
	nodes, err := mega.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := mega.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	type usage struct{ cpu, memory, pods int64 }
	used := map[string]*usage{}
	for i := range all.Items {
		pod := &all.Items[i]
		if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		sum := used[pod.Spec.NodeName]
		if sum == nil {
			sum = &usage{}
			used[pod.Spec.NodeName] = sum
		}
		sum.pods++
		for _, container := range pod.Spec.Containers {
			sum.cpu += container.Resources.Requests.Cpu().MilliValue()
			sum.memory += container.Resources.Requests.Memory().Value()
		}
	}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		sum := used[node.Name]
		if sum == nil {
			continue
		}
		delete(used, node.Name)
		allows := node.Status.Allocatable
		if sum.cpu > allows.Cpu().MilliValue() || sum.memory > allows.Memory().Value() || sum.pods > allows.Pods().Value() {
			t.Errorf("node %s is over its allocatable: %+v", node.Name, *sum)
		}
	}
	for node := range used {
		t.Errorf("pods are bound to node %s, which is not there", node)
	}
}

// bindings follows every pod's node from here on: a pod that changes it was bound twice.
func followBindings(t *testing.T, ns string) (check func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	bound, twice := map[string]string{}, []string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			watcher, err := mega.client.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{})
			if err != nil {
				time.Sleep(200 * time.Millisecond)
				continue
			}
			for event := range watcher.ResultChan() {
				pod, ok := event.Object.(*corev1.Pod)
				if !ok || pod.Spec.NodeName == "" {
					continue
				}
				if before := bound[string(pod.UID)]; before != "" && before != pod.Spec.NodeName {
					twice = append(twice, fmt.Sprintf("%s: %s, then %s", pod.Name, before, pod.Spec.NodeName))
				}
				bound[string(pod.UID)] = pod.Spec.NodeName
			}
		}
	}()
	return func() {
		t.Helper()
		cancel()
		<-done
		for _, pod := range twice {
			t.Errorf("bound twice: %s", pod)
		}
		t.Logf("%d pods were seen bound", len(bound))
	}
}

// TestAThousandPods is the figure of the README: a Deployment of 1,000 pods on the sample's nodes.
func TestAThousandPods(t *testing.T) {
	ns := scratch(t)
	check := followBindings(t, ns)
	createDeployment(t, deployment(ns, "thousand", 1000, podSpec("100m")))
	took := waitRunning(t, ns, "thousand", 1000, 4*time.Minute)
	check()
	checkNodes(t)
	t.Logf("1,000 pods Running in %s", took.Round(100*time.Millisecond))
}

// hostnameTerm: the pods of the Deployment app, on one node.
func hostnameTerm(app string) []corev1.PodAffinityTerm {
	return []corev1.PodAffinityTerm{{
		TopologyKey:   "kubernetes.io/hostname",
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
	}}
}

// TestUnschedulablePodsSayWhy reads the condition and the event that kube-scheduler's users know.
func TestUnschedulablePodsSayWhy(t *testing.T) {
	ns := scratch(t)
	cases := map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"too-large": {func(s *corev1.PodSpec) {
			s.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("10k")
		}, "Insufficient cpu"},
		"no-such-label": {func(s *corev1.PodSpec) {
			s.NodeSelector = map[string]string{"no-such": "label"}
		}, "node(s) didn't match Pod's node affinity/selector"},
		"beside-nobody": {func(s *corev1.PodSpec) {
			s.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: hostnameTerm("nobody"),
			}}
		}, "node(s) didn't match pod affinity rules"},
		"without-its-claim": {func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
			}}}
		}, "persistentvolumeclaim \"data\" not found"},
	}
	for podName, c := range cases {
		spec := podSpec("100m")
		c.change(&spec)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: podName}, Spec: spec}
		if _, err := mega.client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for podName, c := range cases {
		eventually(t, 20*time.Second, podName+" says why", func(ctx context.Context) error {
			pod, err := mega.client.CoreV1().Pods(ns).Get(ctx, podName, getOptions)
			if err != nil {
				return err
			}
			for _, cond := range pod.Status.Conditions {
				if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse &&
					cond.Reason == corev1.PodReasonUnschedulable && strings.Contains(cond.Message, c.want) {
					return nil
				}
			}
			return fmt.Errorf("conditions %+v", pod.Status.Conditions)
		})
		eventually(t, 20*time.Second, podName+" has its event", func(ctx context.Context) error {
			events, err := mega.client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + podName})
			if err != nil {
				return err
			}
			for i := range events.Items {
				if events.Items[i].Reason == "FailedScheduling" {
					return nil
				}
			}
			return fmt.Errorf("%d events", len(events.Items))
		})
	}
}

// TestPodsFollowTheirConstraints: a selector, a taint, a port that only one pod of a node can have,
// pods that keep apart.
func TestPodsFollowTheirConstraints(t *testing.T) {
	ns := scratch(t)
	nodes, err := mega.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{Limit: 3})
	if err != nil || len(nodes.Items) < 3 {
		t.Fatalf("nodes: %v", err)
	}
	for i := range nodes.Items {
		mega.mustKubectl(t, "", "label", "node", nodes.Items[i].Name, "journey=ports", "--overwrite")
		t.Cleanup(func() {
			_, _ = mega.kubectl(context.Background(), "", "label", "node", nodes.Items[i].Name, "journey-")
		})
	}
	ports := podSpec("100m")
	ports.NodeSelector = map[string]string{"journey": "ports"}
	apart := *ports.DeepCopy()
	ports.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 18080}}
	apart.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: hostnameTerm("apart"),
	}}
	for app, spec := range map[string]corev1.PodSpec{"ports": ports, "apart": apart} {
		createDeployment(t, deployment(ns, app, 3, spec))
		waitRunning(t, ns, app, 3, 30*time.Second)
		list, err := mega.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			t.Fatal(err)
		}
		onNode := map[string]bool{}
		for i := range list.Items {
			onNode[list.Items[i].Spec.NodeName] = true
		}
		if len(onNode) != 3 {
			t.Errorf("three pods of %s share nodes: %v", app, onNode)
		}
	}
}

package journey

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// elected is a component of which one replica leads by a Lease.
type elected struct {
	component        string
	lease            string
	leases, pods     string // namespaces
	inside           bool   // whether the Lease is in the MegaCluster
	spec             string // its part of the MegaCluster's spec
	labels           string
	ownStandbyStatus string // field of the MegaCluster's status
}

var (
	controllerManager = elected{
		component: "controller-manager", lease: "kube-controller-manager", leases: "kube-system", pods: namespace, inside: true,
		spec: "controllerManager", labels: "megacluster.io/name=" + name + ",app.kubernetes.io/component=controller-manager",
		ownStandbyStatus: "controllerManager",
	}
	relay = elected{
		component: "scheduler-relay", lease: "kube-scheduler", leases: "kube-system", pods: namespace, inside: true,
		spec: "scheduler", labels: "megacluster.io/name=" + name + ",app.kubernetes.io/component=scheduler-relay",
		ownStandbyStatus: "scheduler",
	}
	operator = elected{
		component: "operator", lease: "megacluster-operator", leases: "megacluster-system", pods: "megacluster-system",
	}
)

// leads is what a Lease says.
type leads struct {
	pod, epoch string
	synced     bool
	// How often it has changed hands.
	transitions int32
}

func (e elected) read(ctx context.Context) (leads, error) {
	of := management
	if e.inside {
		of = mega
	}
	lease, err := of.client.CoordinationV1().Leases(e.leases).Get(ctx, e.lease, getOptions)
	if err != nil {
		return leads{}, err
	}
	holder := ptr.Deref(lease.Spec.HolderIdentity, "")
	if holder == "" {
		return leads{}, fmt.Errorf("nobody holds the Lease %s", e.lease)
	}
	if e.inside {
		// POD_PORT
		holder = holder[:max(0, strings.LastIndexByte(holder, '_'))]
	}
	epoch := lease.Annotations["megacluster.io/epoch"]
	if epoch == "" {
		epoch = lease.ResourceVersion
	}
	settling := lease.Annotations["megacluster.io/settling"] != ""
	synced := !settling && strings.HasSuffix(lease.Annotations["megacluster.io/standby"], " synced")
	return leads{holder, epoch, synced, ptr.Deref(lease.Spec.LeaseTransitions, 0)}, nil
}

// replicas gives the component's pods; an error where one is not ready.
func (e elected) replicas(ctx context.Context) ([]corev1.Pod, error) {
	list, err := management.client.CoreV1().Pods(e.pods).List(ctx, metav1.ListOptions{LabelSelector: e.labels})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		if pod := &list.Items[i]; !podReady(pod) {
			return nil, fmt.Errorf("pod %s is not ready", pod.Name)
		}
	}
	if len(list.Items) != 2 {
		return nil, fmt.Errorf("%d replicas", len(list.Items))
	}
	return list.Items, nil
}

func podReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// warm waits until the leader has a synced standby, and gives the leader and its pod.
func (e elected) warm(t *testing.T) (leads, *corev1.Pod) {
	t.Helper()
	var lead leads
	var victim *corev1.Pod
	eventually(t, 90*time.Second, e.component+" has a synced standby", func(ctx context.Context) error {
		running, err := e.replicas(ctx)
		if err != nil {
			return err
		}
		if lead, err = e.read(ctx); err != nil {
			return err
		}
		if !lead.synced {
			return fmt.Errorf("%s leads without a synced standby", lead.pod)
		}
		for i := range running {
			if running[i].Name == lead.pod {
				victim = &running[i]
				return nil
			}
		}
		return fmt.Errorf("the leader %s is none of the pods", lead.pod)
	})
	// Nothing of the round before is under way any more.
	time.Sleep(time.Second)
	return lead, victim
}

// shown waits until the MegaCluster's status says what the Leases say.
func shown(t *testing.T) {
	t.Helper()
	eventually(t, 45*time.Second, "status says StandbySynced", func(ctx context.Context) error {
		object, err := getMegaCluster(ctx, namespace, name)
		if err != nil {
			return err
		}
		if found, ok := condition(object, "StandbySynced"); !ok || found["status"] != "True" {
			return fmt.Errorf("StandbySynced is %v", found)
		}
		return nil
	})
}

// renew replaces a pod that was killed: the kubelet would start it later and later. The pod that
// comes has not been killed yet.
func renew(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	err := management.client.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func mustKill(t *testing.T, pids []int) {
	t.Helper()
	if signalAll(pids, syscall.SIGKILL) == 0 {
		t.Fatal("there was nothing to kill")
	}
}

// podsSeen follows a namespace's pods.
type podsSeen struct {
	mutex   sync.Mutex
	created map[string]int       // by label app
	bound   map[string]time.Time // by name, when it was first seen on a node
	node    map[string]string    // by UID
	twice   []string
	changed chan struct{}
}

// follow watches the pods of a namespace from here on, by a client outside.
func follow(t *testing.T, ns string) *podsSeen {
	t.Helper()
	seen := &podsSeen{
		created: map[string]int{}, bound: map[string]time.Time{}, node: map[string]string{}, changed: make(chan struct{}, 1),
	}
	known := map[string]bool{}
	opened := make(chan struct{})
	var once sync.Once
	go func() {
		for t.Context().Err() == nil {
			// Without a resourceVersion it begins with all that is there.
			watcher, err := mega.client.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				time.Sleep(20 * time.Millisecond)
				continue
			}
			once.Do(func() { close(opened) })
			for event := range watcher.ResultChan() {
				if pod, ok := event.Object.(*corev1.Pod); ok {
					seen.take(pod, known)
				}
			}
		}
	}()
	<-opened
	return seen
}

func (s *podsSeen) take(pod *corev1.Pod, known map[string]bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	uid := string(pod.UID)
	if !known[uid] {
		known[uid] = true
		s.created[pod.Labels["app"]]++
	}
	if pod.Spec.NodeName != "" {
		if before := s.node[uid]; before == "" {
			s.node[uid] = pod.Spec.NodeName
			s.bound[pod.Name] = time.Now()
		} else if before != pod.Spec.NodeName {
			s.twice = append(s.twice, fmt.Sprintf("%s: %s, then %s", pod.Name, before, pod.Spec.NodeName))
		}
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// until waits until what was seen is enough.
func (s *podsSeen) until(t *testing.T, what string, enough func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		s.mutex.Lock()
		done := enough()
		s.mutex.Unlock()
		if done {
			return
		}
		select {
		case <-s.changed:
		case <-deadline:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func (s *podsSeen) boundOnce(t *testing.T) {
	t.Helper()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, pod := range s.twice {
		t.Errorf("bound twice: %s", pod)
	}
}

// deploy creates a Deployment as soon as the API takes it.
func deploy(t *testing.T, ns, app string, replicas int32) {
	t.Helper()
	soon(t, "create a Deployment", func(ctx context.Context) error {
		_, err := mega.client.AppsV1().Deployments(ns).Create(ctx, deployment(ns, app, replicas, podSpec("10m")), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func TestFailoverControllerManagerKilled(t *testing.T) {
	ns := scratch(t)
	seen := follow(t, ns)
	shown(t)
	newRow(t, "controller manager killed: a new Deployment has its pods", time.Second).measure(func(r *round) {
		app := fmt.Sprintf("killed-%d", r.number)
		before, victim := controllerManager.warm(t)
		pids := processes(t, victim)
		r.begin()
		mustKill(t, pids)
		deploy(t, ns, app, 3)
		seen.until(t, "three pods", func() bool { return seen.created[app] == 3 })
		r.end()
		controllerManager.tookOver(t, before)
		renew(t, victim)
	})
	seen.boundOnce(t)
}

// tookOver checks that another pod leads, in a later epoch.
func (e elected) tookOver(t *testing.T, before leads) leads {
	t.Helper()
	var now leads
	eventually(t, 10*time.Second, "another replica leads", func(ctx context.Context) error {
		var err error
		if now, err = e.read(ctx); err != nil {
			return err
		}
		if now.pod == before.pod {
			return fmt.Errorf("%s still leads", now.pod)
		}
		return nil
	})
	if !later(now.epoch, before.epoch) {
		t.Errorf("%s: epoch %s follows %s", e.component, now.epoch, before.epoch)
	}
	return now
}

// later compares epochs, which are resourceVersions: numbers without a sign.
func later(epoch, before string) bool {
	return len(epoch) > len(before) || len(epoch) == len(before) && epoch > before
}

// rollOut changes the component's memory request in the MegaCluster's spec by a little, and gives
// what waits until all of its pods are new ones and ready.
func (e elected) rollOut(t *testing.T, number int) (finished func(context.Context) error) {
	t.Helper()
	began := metav1.Now().Rfc3339Copy()
	patch := fmt.Sprintf(`{"spec":{%q:{"resources":{"requests":{"memory":"%dMi"}}}}}`, e.spec, 64+(time.Now().Unix()+int64(number))%60)
	if _, err := management.dynamic.Resource(megaClusters).Namespace(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) error {
		list, err := management.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "megacluster.io/name=" + name})
		if err != nil {
			return err
		}
		for i := range list.Items {
			pod := &list.Items[i]
			component := pod.Labels["app.kubernetes.io/component"]
			if component != e.component && !(e.spec == "scheduler" && strings.HasPrefix(component, "scheduler-")) {
				continue
			}
			if pod.CreationTimestamp.Before(&began) || !podReady(pod) {
				return fmt.Errorf("pod %s is an old one or not ready", pod.Name)
			}
		}
		return nil
	}
}

// TestFailoverControllerManagerRollout creates a Deployment every tenth of a second while the
// controller manager is rolled out; the figure is the longest that one of them waits for its pod. The
// leader's pod goes last, so that leadership is handed over once.
func TestFailoverControllerManagerRollout(t *testing.T) {
	ns := scratch(t)
	seen := follow(t, ns)
	newRow(t, "controller manager rolled out: the longest that a new Deployment waits for its pod", 500*time.Millisecond).notHeld("0.20 to 0.96 s were seen: the new leader looks through all objects on the CPUs on which the old one and another new one end and start").measure(func(r *round) {
		before, _ := controllerManager.warm(t)
		type arrival struct {
			asked time.Time
			took  time.Duration
		}
		arrived := make(chan arrival, 4096)
		var waiting sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		probe := func(app string) {
			defer waiting.Done()
			asked := time.Now()
			deploy(t, ns, app, 1)
			for {
				seen.mutex.Lock()
				there := seen.created[app] > 0
				seen.mutex.Unlock()
				if there || time.Since(asked) > 30*time.Second {
					arrived <- arrival{asked, time.Since(asked)}
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		r.begin()
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			ticks := time.NewTicker(100 * time.Millisecond)
			defer ticks.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				waiting.Add(1)
				go probe(fmt.Sprintf("rolled-%d-%d", r.number, i))
				<-ticks.C
			}
		}()
		finished := controllerManager.rollOut(t, r.number)
		eventually(t, 2*time.Minute, "the rollout", finished)
		time.Sleep(500 * time.Millisecond)
		stop()
		waiting.Wait()
		close(arrived)
		var worst arrival
		sum, count := time.Duration(0), 0
		for one := range arrived {
			if one.took > worst.took {
				worst = one
			}
			sum, count = sum+one.took, count+1
		}
		r.endWith(worst.took)
		t.Logf("%d Deployments in %s, %s in the mean; the longest was asked for at %s", count, time.Since(r.began).Round(time.Second),
			(sum / time.Duration(max(1, count))).Round(time.Millisecond), worst.asked.UTC().Format(time.StampMilli))
		if now := controllerManager.tookOver(t, before); now.transitions != before.transitions+1 {
			t.Errorf("round %d: leadership was handed over %d times, not once", r.number, now.transitions-before.transitions)
		}
		cleared(t, ns)
	})
	seen.boundOnce(t)
}

// cleared deletes the Deployments of a round and waits until their pods are gone: the next round's
// figure isn't to show the work that this makes.
func cleared(t *testing.T, ns string) {
	t.Helper()
	err := mega.client.AppsV1().Deployments(ns).DeleteCollection(t.Context(), metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}, metav1.ListOptions{})
	if err != nil {
		t.Error(err)
	}
	eventually(t, time.Minute, "the round's pods are gone", func(ctx context.Context) error {
		left, err := mega.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil && len(left.Items) > 0 {
			err = fmt.Errorf("pod %s is there", left.Items[0].Name)
		}
		return err
	})
}

// TestFailoverOperatorKilled deletes a child right after the leading operator is killed.
func TestFailoverOperatorKilled(t *testing.T) {
	newRow(t, "operator killed: a deleted child is back", 2*time.Second).measure(func(r *round) {
		before, victim := operator.warm(t)
		pids := processes(t, victim)
		r.begin()
		mustKill(t, pids)
		childComesBack(t)
		r.end()
		operator.tookOver(t, before)
		renew(t, victim)
	})
}

// childComesBack deletes a child of the sample and waits until another one is there.
func childComesBack(t *testing.T) {
	t.Helper()
	budgets := management.client.PolicyV1().PodDisruptionBudgets(namespace)
	child := name + "-controller-manager"
	old, err := budgets.Get(t.Context(), child, getOptions)
	if err != nil {
		t.Fatal(err)
	}
	if err := budgets.Delete(t.Context(), child, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the child is back", func(ctx context.Context) error {
		now, err := budgets.Get(ctx, child, getOptions)
		if err == nil && now.UID == old.UID {
			err = fmt.Errorf("it is the old one")
		}
		return err
	})
}

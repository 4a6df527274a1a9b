package kubeapiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What an object holds, as JSON.
type fields = map[string]any

// bindTimeout is how long a pod keeps its place while its claims are not bound.
const bindTimeout = 20 * time.Second

// volumes is a cluster of three nodes with a scheduler, the real controller that binds claims, and a
// provisioner that the test plays.
type volumes struct {
	*client
	// Ends the provisioner.
	done chan struct{}
}

// schedulers that have to do the same: ours, and kube-scheduler itself, which shows that the test is
// right.
var schedulers = []struct{ name, variable string }{
	{"megacluster-scheduler", "SCHEDULER_BINARY"},
	{"kube-scheduler", "KUBE_SCHEDULER_BINARY"},
}

func startVolumes(t *testing.T, name, variable string) *volumes {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	c := startAPIServer(t, "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	write := func(name string, content any) string {
		text, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file(name)
	}
	kubeconfig := write("kubeconfig", fields{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []fields{{"name": "c", "cluster": fields{
			"server": c.base, "insecure-skip-tls-verify": true,
		}}},
		"users":    []fields{{"name": "u", "user": fields{"token": token}}},
		"contexts": []fields{{"name": "c", "context": fields{"cluster": "c", "user": "u"}}},
	})
	configuration := write("scheduler", fields{
		"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
		"clientConnection": fields{"kubeconfig": kubeconfig},
		"leaderElection":   fields{"leaderElect": false},
		"profiles": []fields{{"pluginConfig": []fields{{
			"name": "VolumeBinding", "args": fields{"bindTimeoutSeconds": bindTimeout / time.Second},
		}}}},
	})
	served := func(directory string) []string {
		return []string{
			"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
			"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", freePort(t)),
			"--cert-dir=" + file(directory),
		}
	}
	start(t, "CONTROLLER_MANAGER_BINARY", append(served("controller-manager"),
		"--kubeconfig="+kubeconfig, "--leader-elect=false",
		"--controllers=persistentvolume-binder-controller", "--pvclaimbinder-sync-period=2s")...)
	v := &volumes{c, make(chan struct{})}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		v.node(node)
	}
	for class, provisioner := range map[string]string{
		"made-before": "kubernetes.io/no-provisioner", "made": "made.example.com", "never": "never.example.com",
	} {
		v.create("/apis/storage.k8s.io/v1/storageclasses", fields{
			"metadata": fields{"name": class}, "provisioner": provisioner,
			"volumeBindingMode": "WaitForFirstConsumer",
		})
	}
	if name == "kube-scheduler" {
		start(t, variable, append(served(name), "--config="+configuration)...)
	} else {
		start(t, variable, "--config="+configuration,
			fmt.Sprintf("--admin-listen-address=127.0.0.1:%d", freePort(t)))
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		v.provision()
	}()
	t.Cleanup(func() {
		close(v.done)
		<-ended
	})
	return v
}

func (v *volumes) create(path string, object fields) {
	v.t.Helper()
	// Namespaces and caches of a new kube-apiserver may take a moment.
	deadline := time.Now().Add(patience)
	for {
		status, text := v.do(http.MethodPost, path, object)
		if status == http.StatusCreated {
			return
		}
		if status == http.StatusConflict || time.Now().After(deadline) {
			v.t.Fatalf("%s: %d\n%s", path, status, text)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// node makes a node whose driver attaches as many volumes as its name ends with, but two at most.
func (v *volumes) node(name string) {
	v.t.Helper()
	room := fields{"cpu": "4", "memory": "8Gi", "pods": "110"}
	v.create("/api/v1/nodes", fields{
		"metadata": fields{"name": name, "labels": fields{"kubernetes.io/hostname": name}},
		"status":   fields{"allocatable": room, "capacity": room},
	})
	count := 1
	if name == "node-2" {
		count = 2
	}
	v.create("/apis/storage.k8s.io/v1/csinodes", fields{
		"metadata": fields{"name": name},
		"spec": fields{"drivers": []fields{{
			"name": "made.example.com", "nodeID": name, "topologyKeys": []string{},
			"allocatable": fields{"count": count},
		}}},
	})
}

const (
	claimsPath  = "/api/v1/namespaces/default/persistentvolumeclaims"
	volumesPath = "/api/v1/persistentvolumes"
	podsPath    = "/api/v1/namespaces/default/pods"
)

// claim makes a claim and a pod of the same name that has it, with further fields of its spec.
func (v *volumes) claim(name, class string, spec fields) {
	v.t.Helper()
	v.create(claimsPath, fields{
		"metadata": fields{"name": name},
		"spec": fields{
			"storageClassName": class, "accessModes": []string{"ReadWriteOnce"},
			"resources": fields{"requests": fields{"storage": "1Gi"}},
		},
	})
	whole := fields{"volumes": []fields{{
		"name": "v", "persistentVolumeClaim": fields{"claimName": name},
	}}}
	for key, value := range spec {
		whole[key] = value
	}
	v.pod(name, "100m", whole)
}

func (v *volumes) pod(name, cpu string, spec fields) {
	v.t.Helper()
	if spec["containers"] == nil {
		spec["containers"] = []fields{{
			"name": "c", "image": "i", "resources": fields{"requests": fields{"cpu": cpu}},
		}}
	}
	spec["terminationGracePeriodSeconds"] = 0
	v.create(podsPath, fields{"metadata": fields{"name": name}, "spec": spec})
}

// volume makes a volume, on one node where that is named, for one claim where that is given.
func (v *volumes) volume(name, class, node string, claim fields) error {
	spec := fields{
		"capacity": fields{"storage": "1Gi"}, "accessModes": []string{"ReadWriteOnce"},
		"storageClassName": class, "persistentVolumeReclaimPolicy": "Retain",
	}
	if node != "" {
		spec["local"] = fields{"path": "/" + name}
		spec["nodeAffinity"] = fields{"required": fields{"nodeSelectorTerms": []fields{{
			"matchExpressions": []fields{{
				"key": "kubernetes.io/hostname", "operator": "In", "values": []string{node},
			}},
		}}}}
	} else {
		spec["csi"] = fields{"driver": "made.example.com", "volumeHandle": name}
	}
	if claim != nil {
		spec["claimRef"] = claim
	}
	status, text, err := v.try(http.MethodPost, volumesPath, fields{"metadata": fields{"name": name}, "spec": spec})
	if err != nil {
		return err
	}
	if status != http.StatusCreated && status != http.StatusConflict {
		return fmt.Errorf("%d %s", status, text)
	}
	return nil
}

type claimed struct {
	Metadata struct {
		Name, UID   string
		Annotations map[string]string
	}
	Spec   struct{ VolumeName, StorageClassName string }
	Status struct{ Phase string }
}

const selected = "volume.kubernetes.io/selected-node"

// provision makes the volume of each claim of the class "made" that has a node, until it is ended.
func (v *volumes) provision() {
	for {
		var list struct{ Items []claimed }
		status, text, err := v.try(http.MethodGet, claimsPath, nil)
		if err == nil && status == http.StatusOK && json.Unmarshal(text, &list) == nil {
			for _, claim := range list.Items {
				meta := claim.Metadata
				if claim.Spec.StorageClassName != "made" || claim.Spec.VolumeName != "" || meta.Annotations[selected] == "" {
					continue
				}
				reference := fields{
					"apiVersion": "v1", "kind": "PersistentVolumeClaim",
					"namespace": "default", "name": meta.Name, "uid": meta.UID,
				}
				if err := v.volume("volume-of-"+meta.Name, "made", "", reference); err != nil {
					v.t.Errorf("volume of %s: %v", meta.Name, err)
				}
			}
		}
		select {
		case <-v.done:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type placed struct {
	Spec   struct{ NodeName string }
	Status struct {
		Conditions []struct{ Type, Status, Message string }
	}
}

// look tells a pod's node and why it has none.
func (v *volumes) look(name string) (node, message string) {
	v.t.Helper()
	var pod placed
	v.must(http.StatusOK, http.MethodGet, podsPath+"/"+name, nil, &pod)
	for _, condition := range pod.Status.Conditions {
		if condition.Type == "PodScheduled" && condition.Status == "False" {
			message = condition.Message
		}
	}
	return pod.Spec.NodeName, message
}

func (v *volumes) until(what string, holds func() bool) {
	v.t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			v.t.Fatalf("never: %s", what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// waits says that a pod stays Pending with a message that begins so.
func (v *volumes) waits(name, begin string) {
	v.t.Helper()
	var node, message string
	v.until(name+" waits: "+begin, func() bool {
		node, message = v.look(name)
		return node != "" || strings.HasPrefix(message, begin)
	})
	if node != "" {
		v.t.Fatalf("%s is on %s", name, node)
	}
	v.t.Logf("%s: %s", name, message)
}

// gets says which node a pod has once it has one.
func (v *volumes) gets(name string) string {
	v.t.Helper()
	var node string
	v.until(name+" has a node", func() bool {
		node, _ = v.look(name)
		return node != ""
	})
	return node
}

func (v *volumes) bound(name string) claimed {
	v.t.Helper()
	var claim claimed
	v.until(name+" is bound", func() bool {
		v.must(http.StatusOK, http.MethodGet, claimsPath+"/"+name, nil, &claim)
		return claim.Status.Phase == "Bound"
	})
	return claim
}

func eachScheduler(t *testing.T, test func(t *testing.T, v *volumes)) {
	for _, scheduler := range schedulers {
		t.Run(scheduler.name, func(t *testing.T) {
			if os.Getenv(scheduler.variable) == "" {
				t.Skipf("%s names no program", scheduler.variable)
			}
			test(t, startVolumes(t, scheduler.name, scheduler.variable))
		})
	}
}

// TestVolumes has claims that wait for their consumer bound to volumes that are there and to such
// that are made for them, drivers' limits kept, and a place given back whose volume never comes.
func TestVolumes(t *testing.T) {
	eachScheduler(t, func(t *testing.T, v *volumes) {
		t.Run("made before", func(t *testing.T) { madeBefore(v.of(t)) })
		t.Run("limits", func(t *testing.T) { limits(v.of(t)) })
		t.Run("never made", func(t *testing.T) { neverMade(v.of(t)) })
	})
}

func (v *volumes) of(t *testing.T) *volumes {
	c := *v.client
	c.t = t
	return &volumes{&c, v.done}
}

func madeBefore(v *volumes) {
	if err := v.volume("before-1", "made-before", "node-2", nil); err != nil {
		v.t.Fatal(err)
	}
	v.claim("first", "made-before", fields{})
	if node := v.gets("first"); node != "node-2" {
		v.t.Errorf("first is on %s, its volume on node-2", node)
	}
	if name := v.bound("first").Spec.VolumeName; name != "before-1" {
		v.t.Errorf("first is bound to %s", name)
	}
	// No volume is left; one that comes later wakes the pod.
	v.claim("second", "made-before", fields{})
	v.waits("second", "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.")
	if err := v.volume("before-2", "made-before", "node-3", nil); err != nil {
		v.t.Fatal(err)
	}
	if node := v.gets("second"); node != "node-3" {
		v.t.Errorf("second is on %s, its volume on node-3", node)
	}
	if name := v.bound("second").Spec.VolumeName; name != "before-2" {
		v.t.Errorf("second is bound to %s", name)
	}
}

func limits(v *volumes) {
	on := map[string]int{}
	for _, name := range []string{"limited-1", "limited-2", "limited-3", "limited-4"} {
		v.claim(name, "made", fields{})
		node := v.gets(name)
		on[node]++
		claim := v.bound(name)
		if claim.Metadata.Annotations[selected] != node || claim.Spec.VolumeName != "volume-of-"+name {
			v.t.Errorf("%s is on %s, its claim is %+v", name, node, claim)
		}
	}
	if fmt.Sprint(on) != "map[node-1:1 node-2:2 node-3:1]" {
		v.t.Errorf("more than attach: %v", on)
	}
	v.claim("limited-5", "made", fields{})
	v.waits("limited-5", "0/3 nodes are available: 3 node(s) exceed max volume count.")
	// One that goes makes room.
	place := v.gets("limited-2")
	v.must(http.StatusOK, http.MethodDelete, podsPath+"/limited-2", nil, nil)
	if node := v.gets("limited-5"); node != place {
		v.t.Errorf("limited-5 is on %s, and there is room on %s", node, place)
	}
	v.bound("limited-5")
}

func neverMade(v *volumes) {
	there := fields{"kubernetes.io/hostname": "node-1"}
	v.claim("never", "never", fields{
		"nodeSelector": there,
		"containers": []fields{{
			"name": "c", "image": "i", "resources": fields{"requests": fields{"cpu": "3"}},
		}},
	})
	var claim claimed
	v.until("the claim has a node", func() bool {
		v.must(http.StatusOK, http.MethodGet, claimsPath+"/never", nil, &claim)
		return claim.Metadata.Annotations[selected] != ""
	})
	begun := time.Now()
	if node := claim.Metadata.Annotations[selected]; node != "node-1" {
		v.t.Errorf("the claim's node is %s", node)
	}
	// Its place is taken as long as it waits, and another's afterwards.
	v.pod("beside", "2", fields{"nodeSelector": there})
	v.waits("beside", "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector.")
	if node := v.gets("beside"); node != "node-1" {
		v.t.Errorf("beside is on %s", node)
	}
	waited := time.Since(begun)
	v.t.Logf("the place was free again after %s", waited.Round(time.Second/10))
	if waited < bindTimeout-2*time.Second || waited > bindTimeout+30*time.Second {
		v.t.Errorf("the place was free again after %s, not %s", waited, bindTimeout)
	}
	if node, _ := v.look("never"); node != "" {
		v.t.Errorf("never is on %s without its volume", node)
	}
}

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/printers"
	"k8s.io/kubernetes/pkg/printers/internalversion"
)

func newPrinter() *printers.HumanReadableGenerator {
	return printers.NewTableGenerator().With(internalversion.AddHandlers)
}

// writeColumns writes the columns of every resource's table as kube-apiserver tells them.
func writeColumns() error {
	printer := newPrinter()
	fmt.Println("# Written by tests/oracle/kinds from Kubernetes' own printers: group, resource, the columns of its table.")
	for _, r := range resources {
		kind := schema.GroupVersionKind{Group: r.group, Version: runtime.APIVersionInternal, Kind: r.kind + "List"}
		list, err := legacyscheme.Scheme.New(kind)
		if err != nil {
			return err
		}
		table, err := printer.GenerateTable(list, printers.GenerateOptions{Wide: true})
		if err != nil {
			// kube-apiserver has another way for what it has no printer of.
			continue
		}
		columns, err := json.Marshal(table.ColumnDefinitions)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\t%s\n", r.group, r.plural, columns)
	}
	return nil
}

// writeTables writes random objects of every resource that has columns: its plural name and group,
// the stored value, the time in nanoseconds, and the row that Kubernetes' own printer makes of it
// then; each after four bytes of length.
func writeTables(seedText, countText string) error {
	seed, err := strconv.ParseInt(seedText, 10, 64)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(countText)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	printer := newPrinter()
	rows := 0
	for number := range count {
		for _, r := range resources {
			filler := filler{rand.New(rand.NewSource(seed + int64(number)))}
			gvk := schema.GroupVersionKind{Group: r.group, Version: r.version, Kind: r.kind}
			object, err := legacyscheme.Scheme.New(gvk)
			if err != nil {
				return err
			}
			filler.fill(reflect.ValueOf(object).Elem(), 0)
			accessor, err := meta.Accessor(object)
			if err != nil {
				return err
			}
			accessor.SetResourceVersion("")
			accessor.SetName("name")
			labels := map[string]string{"app": "web", "x.io/y": ""}
			for _, role := range []string{"node-role.kubernetes.io/", "node-role.kubernetes.io/b", "node-role.kubernetes.io/a", "kubernetes.io/role"} {
				if filler.Intn(3) == 0 {
					labels[role] = filler.choose([]string{"", "b", "control-plane"})
				}
			}
			accessor.SetLabels(labels)
			filler.live(object)
			stored, err := encode(runtime.ContentTypeProtobuf, object, gvk)
			if err != nil {
				return fmt.Errorf("%s: %w", r.plural, err)
			}
			// What is stored is what is read.
			once, _, err := reread(stored, gvk)
			if err != nil {
				continue
			}
			twice, _, err := reread(once, gvk)
			if err != nil || !bytes.Equal(once, twice) {
				continue
			}
			internal, err := runtime.Decode(legacyscheme.Codecs.UniversalDecoder(), twice)
			if err != nil {
				return err
			}
			// Not close to the next second, where the printer's clock might be a second ahead.
			for time.Now().Nanosecond() > 900_000_000 {
				time.Sleep(10 * time.Millisecond)
			}
			now := time.Now().UnixNano()
			table, err := printer.GenerateTable(internal, printers.GenerateOptions{Wide: true})
			if err != nil {
				continue
			}
			row := table.Rows[0]
			row.Object = runtime.RawExtension{}
			text, err := json.Marshal(row)
			if err != nil {
				return err
			}
			if err := writeParts(out, []byte(r.plural+"."+r.group), twice, []byte(strconv.FormatInt(now, 10)), text); err != nil {
				return err
			}
			rows++
		}
	}
	fmt.Fprintf(os.Stderr, "%d rows\n", rows)
	return out.Flush()
}

// live gives an object states as they are in a cluster, so that printers find what they look for.
func (f filler) live(object runtime.Object) {
	recent := func() metav1.Time {
		steps := []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour, 700 * 24 * time.Hour}
		// A half second from where an age becomes another.
		ago := time.Duration(f.Int63n(200)) * f.steps(steps)
		return metav1.Time{Time: time.Now().Truncate(time.Second).Add(-ago)}
	}
	accessor, err := meta.Accessor(object)
	if err != nil || f.Intn(5) == 0 {
		return
	}
	if f.Intn(4) > 0 {
		accessor.SetCreationTimestamp(recent())
	}
	if f.Intn(2) > 0 {
		accessor.SetDeletionTimestamp(nil)
	}
	bool3 := func() corev1.ConditionStatus {
		return []corev1.ConditionStatus{"True", "False", "Unknown"}[f.Intn(3)]
	}
	switch to := object.(type) {
	case *corev1.Pod:
		f.pod(to, recent, bool3)
	case *corev1.Node:
		to.Status.Conditions = nil
		for range f.Intn(4) {
			kind := corev1.NodeConditionType(f.choose([]string{"Ready", "MemoryPressure", "Ready"}))
			to.Status.Conditions = append(to.Status.Conditions, corev1.NodeCondition{Type: kind, Status: bool3()})
		}
		for i := range to.Status.Addresses {
			to.Status.Addresses[i].Type = corev1.NodeAddressType(f.choose([]string{"InternalIP", "ExternalIP", "Hostname"}))
		}
	case *corev1.Service:
		to.Spec.Type = corev1.ServiceType(f.choose([]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}))
	case *corev1.Event:
		to.InvolvedObject.Kind = f.choose([]string{"Pod", "ReplicaSet", "ÄÖ", ""})
		to.Message = f.choose([]string{"  started  ", "x\n", "\u00a0y\u2003", "plain"})
		to.LastTimestamp = recent()
	}
}

func (f filler) steps(of []time.Duration) time.Duration { return of[f.Intn(len(of))] }

func (f filler) pod(to *corev1.Pod, recent func() metav1.Time, status func() corev1.ConditionStatus) {
	to.Status.Phase = corev1.PodPhase(f.choose([]string{"Pending", "Running", "Succeeded", "Failed", "Unknown"}))
	to.Status.Reason = f.choose([]string{"", "", "", "Evicted", "NodeLost"})
	to.Status.Conditions = nil
	for range f.Intn(5) {
		kind := corev1.PodConditionType(f.choose([]string{"Ready", "Initialized", "PodScheduled", "x.io/gate", "x.io/other"}))
		reason := f.choose([]string{"", "", "SchedulingGated", "Unschedulable"})
		to.Status.Conditions = append(to.Status.Conditions, corev1.PodCondition{Type: kind, Status: status(), Reason: reason})
	}
	to.Spec.ReadinessGates = nil
	for range f.Intn(3) {
		kind := corev1.PodConditionType(f.choose([]string{"x.io/gate", "x.io/other"}))
		to.Spec.ReadinessGates = append(to.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: kind})
	}
	terminated := func() *corev1.ContainerStateTerminated {
		return &corev1.ContainerStateTerminated{
			ExitCode:   []int32{0, 0, 1, 137, -1}[f.Intn(5)],
			Signal:     []int32{0, 0, 9}[f.Intn(3)],
			Reason:     f.choose([]string{"", "Completed", "Completed", "Error", "OOMKilled"}),
			FinishedAt: recent(),
		}
	}
	statuses := func(containers []corev1.Container, enough bool) []corev1.ContainerStatus {
		var all []corev1.ContainerStatus
		for _, container := range containers {
			one := corev1.ContainerStatus{Name: container.Name, RestartCount: []int32{0, 0, 1, 12}[f.Intn(4)], Ready: f.Intn(3) > 0}
			if f.Intn(2) == 0 {
				started := f.Intn(3) > 0
				one.Started = &started
			}
			if f.Intn(2) == 0 {
				one.LastTerminationState.Terminated = terminated()
			}
			switch choice := f.Intn(6); {
			case enough && choice < 3:
				one.State.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed"}
			case choice < 2:
				one.State.Terminated = terminated()
			case choice < 4:
				one.State.Running = &corev1.ContainerStateRunning{StartedAt: recent()}
			case choice < 5:
				one.State.Waiting = &corev1.ContainerStateWaiting{Reason: f.choose([]string{"", "PodInitializing", "CrashLoopBackOff", "ContainerCreating"})}
			}
			all = append(all, one)
		}
		return all
	}
	container := func(number int) corev1.Container {
		return corev1.Container{Name: fmt.Sprintf("c%d", number), Image: "i"}
	}
	to.Spec.Containers, to.Spec.InitContainers = nil, nil
	for number := range f.Intn(4) {
		to.Spec.Containers = append(to.Spec.Containers, container(number))
	}
	for number := range f.Intn(4) {
		one := container(number)
		if f.Intn(2) == 0 {
			policy := corev1.ContainerRestartPolicy(f.choose([]string{"Always", "Always", "Never"}))
			one.RestartPolicy = &policy
		}
		to.Spec.InitContainers = append(to.Spec.InitContainers, one)
	}
	to.Status.InitContainerStatuses = statuses(to.Spec.InitContainers, f.Intn(2) == 0)
	to.Status.ContainerStatuses = statuses(to.Spec.Containers, false)
}

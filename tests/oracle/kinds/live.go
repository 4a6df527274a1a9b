package main

import (
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

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
	f.selectors(reflect.ValueOf(object).Elem())
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
	case *corev1.PersistentVolume:
		to.Spec.Capacity = corev1.ResourceList{"storage": resource.MustParse(f.choose(quantities)), "x": resource.MustParse("1")}
		to.Spec.AccessModes = nil
		for range f.Intn(4) {
			mode := f.choose([]string{"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod", "x"})
			to.Spec.AccessModes = append(to.Spec.AccessModes, corev1.PersistentVolumeAccessMode(mode))
		}
		f.annotate(accessor, corev1.BetaStorageClassAnnotation, "beta", "")
	case *corev1.ResourceQuota:
		to.Status = corev1.ResourceQuotaStatus{Hard: corev1.ResourceList{}, Used: corev1.ResourceList{}}
		for range f.Intn(6) {
			name := corev1.ResourceName(f.choose([]string{"limits.cpu", "limits.memory", "limits", "cpu", "requests.x.io/y", "limitsx.y", "pods"}))
			to.Status.Hard[name] = resource.MustParse(f.choose(quantities))
			if f.Intn(3) > 0 {
				to.Status.Used[name] = resource.MustParse(f.choose(quantities))
			}
		}
	case *appsv1.DaemonSet:
		f.annotate(accessor, appsv1.DeprecatedTemplateGeneration, "3", "-1")
	case *appsv1.Deployment:
		f.annotate(accessor, appsv1.DeprecatedRollbackTo, "3", "0", "")
	case *appsv1.ControllerRevision:
		for i := range to.OwnerReferences {
			to.OwnerReferences[i].APIVersion = f.choose([]string{"apps/v1", "v1", "", "/", "/v1", "x.io/v1", "a/b/c"})
			to.OwnerReferences[i].Kind = f.choose([]string{"DaemonSet", "StatefulSet", "ÄÖ", ""})
		}
	case *batchv1.Job:
		for i := range to.Status.Conditions {
			kind := f.choose([]string{"Complete", "Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"})
			to.Status.Conditions[i].Type, to.Status.Conditions[i].Status = batchv1.JobConditionType(kind), bool3()
		}
		if f.Intn(3) > 0 {
			start, end := recent(), recent()
			to.Status.StartTime = &start
			if f.Intn(2) == 0 {
				to.Status.CompletionTime = &end
			}
		}
	case *batchv1.CronJob:
		if f.Intn(2) == 0 {
			last := recent()
			to.Status.LastScheduleTime = &last
		}
	case *networkingv1.Ingress:
		for i := range to.Spec.Rules {
			to.Spec.Rules[i].Host = f.choose([]string{"", "a.example", "b.example", "*.c.example"})
		}
		to.Spec.Rules = append(to.Spec.Rules, to.Spec.Rules...)
	case *networkingv1.IngressClass:
		f.annotate(accessor, networkingv1.AnnotationIsDefaultIngressClass, "true", "false")
	case *storagev1.StorageClass:
		f.annotate(accessor, "storageclass.kubernetes.io/is-default-class", "true", "True")
		f.annotate(accessor, "storageclass.beta.kubernetes.io/is-default-class", "true", "")
	case *rbacv1.RoleBinding:
		f.subjects(to.Subjects)
	case *rbacv1.ClusterRoleBinding:
		f.subjects(to.Subjects)
	case *autoscalingv2.HorizontalPodAutoscaler:
		f.metrics(to)
	}
}

// annotate may give an object an annotation.
func (f filler) annotate(object metav1.Object, key string, values ...string) {
	if f.Intn(3) == 0 {
		return
	}
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = f.choose(values)
	object.SetAnnotations(annotations)
}

func (f filler) subjects(subjects []rbacv1.Subject) {
	for i := range subjects {
		subjects[i].Kind = f.choose([]string{"User", "Group", "ServiceAccount", "Other"})
	}
}

// metrics gives an autoscaler metrics that it may have, and a few that it may not.
func (f filler) metrics(to *autoscalingv2.HorizontalPodAutoscaler) {
	var spec autoscalingv2.MetricSpec
	var status autoscalingv2.MetricStatus
	to.Spec.Metrics, to.Status.CurrentMetrics = nil, nil
	for range f.Intn(5) {
		f.fill(reflect.ValueOf(&spec).Elem(), 3)
		spec.Type = autoscalingv2.MetricSourceType(f.choose([]string{"External", "Object", "Pods", "Resource", "ContainerResource", "Resource", "Other"}))
		for source := range reflect.ValueOf(&spec).Elem().NumField() {
			field := reflect.ValueOf(&spec).Elem().Field(source)
			if field.Kind() == reflect.Pointer && field.IsNil() && f.Intn(10) > 0 {
				field.Set(reflect.New(field.Type().Elem()))
				f.fill(field.Elem(), 3)
			}
		}
		to.Spec.Metrics = append(to.Spec.Metrics, *spec.DeepCopy())
		if f.Intn(4) > 0 {
			f.fill(reflect.ValueOf(&status).Elem(), 3)
			to.Status.CurrentMetrics = append(to.Status.CurrentMetrics, *status.DeepCopy())
		}
	}
}

// selectors makes label selectors that mostly are some.
func (f filler) selectors(value reflect.Value) {
	if selector, is := value.Addr().Interface().(*metav1.LabelSelector); is {
		keys := []string{"app", "x.io/y", "tier", "a.b-c.io/A_b.c-9"}
		values := []string{"web", "", "v1.2_3-x", "b"}
		if f.Intn(6) == 0 {
			keys = append(keys, "", "/x", "x/", "-a", "a/b/c", "A.io/x", "ä")
			values = append(values, "-", "a b", "ä")
		}
		selector.MatchLabels, selector.MatchExpressions = nil, nil
		for range f.Intn(4) {
			if selector.MatchLabels == nil {
				selector.MatchLabels = map[string]string{}
			}
			selector.MatchLabels[f.choose(keys)] = f.choose(values)
		}
		for range f.Intn(4) {
			one := metav1.LabelSelectorRequirement{
				Key:      f.choose(keys),
				Operator: metav1.LabelSelectorOperator(f.choose([]string{"In", "NotIn", "Exists", "DoesNotExist"})),
			}
			if set := one.Operator == "In" || one.Operator == "NotIn"; set == (f.Intn(12) > 0) {
				for range 1 + f.Intn(3) {
					one.Values = append(one.Values, f.choose(values))
				}
			}
			selector.MatchExpressions = append(selector.MatchExpressions, one)
		}
		return
	}
	switch value.Kind() {
	case reflect.Pointer:
		if !value.IsNil() {
			f.selectors(value.Elem())
		}
	case reflect.Struct:
		for i := range value.NumField() {
			if value.Type().Field(i).IsExported() {
				f.selectors(value.Field(i))
			}
		}
	case reflect.Slice:
		for i := range value.Len() {
			f.selectors(value.Index(i))
		}
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

package recorder

import (
	"reflect"
	"strings"
	"unsafe"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"
)

// Objects that a plugin can look up.
type Objects struct {
	Namespaces             []*v1.Namespace                 `json:"namespaces,omitempty"`
	Services               []*v1.Service                   `json:"services,omitempty"`
	ReplicationControllers []*v1.ReplicationController     `json:"replicationControllers,omitempty"`
	ReplicaSets            []*appsv1.ReplicaSet            `json:"replicaSets,omitempty"`
	StatefulSets           []*appsv1.StatefulSet           `json:"statefulSets,omitempty"`
	Claims                 []*v1.PersistentVolumeClaim     `json:"claims,omitempty"`
	Volumes                []*v1.PersistentVolume          `json:"volumes,omitempty"`
	Classes                []*storagev1.StorageClass       `json:"classes,omitempty"`
	Drivers                []*storagev1.CSIDriver          `json:"drivers,omitempty"`
	Capacities             []*storagev1.CSIStorageCapacity `json:"capacities,omitempty"`
	CSINodes               []*storagev1.CSINode            `json:"csiNodes,omitempty"`
	Attachments            []*storagev1.VolumeAttachment   `json:"attachments,omitempty"`
	Budgets                []*policyv1.PodDisruptionBudget `json:"budgets,omitempty"`
}

func (o *Objects) add(object any) bool {
	switch one := object.(type) {
	case *v1.Namespace:
		o.Namespaces = append(o.Namespaces, one)
	case *v1.Service:
		o.Services = append(o.Services, one)
	case *v1.ReplicationController:
		o.ReplicationControllers = append(o.ReplicationControllers, one)
	case *appsv1.ReplicaSet:
		o.ReplicaSets = append(o.ReplicaSets, one)
	case *appsv1.StatefulSet:
		o.StatefulSets = append(o.StatefulSets, one)
	case *v1.PersistentVolumeClaim:
		o.Claims = append(o.Claims, one)
	case *v1.PersistentVolume:
		o.Volumes = append(o.Volumes, one)
	case *storagev1.StorageClass:
		o.Classes = append(o.Classes, one)
	case *storagev1.CSIDriver:
		o.Drivers = append(o.Drivers, one)
	case *storagev1.CSIStorageCapacity:
		o.Capacities = append(o.Capacities, one)
	case *storagev1.CSINode:
		o.CSINodes = append(o.CSINodes, one)
	case *storagev1.VolumeAttachment:
		o.Attachments = append(o.Attachments, one)
	case *policyv1.PodDisruptionBudget:
		o.Budgets = append(o.Budgets, one)
	case *v1.Pod, *v1.Node:
		// Of the snapshot.
	default:
		return false
	}
	return true
}

// Where fields are followed: plugins, their listers, informers and handles.
var followed = []string{
	"k8s.io/kubernetes/pkg/scheduler/", "k8s.io/client-go/listers", "k8s.io/client-go/informers",
	"k8s.io/client-go/tools/cache",
}

type walk struct {
	event   *Event
	visited map[unsafe.Pointer]bool
	objects map[any]bool
}

// look finds, by its fields, what a plugin can look at: tests make plugins with fake listers, with
// informers, or with a whole handle.
func look(plugin any, event *Event) {
	value := reflect.ValueOf(plugin)
	if value.Kind() != reflect.Pointer {
		return
	}
	event.Gates = gates(value.Elem())
	w := &walk{event, map[unsafe.Pointer]bool{}, map[any]bool{}}
	w.into(value, 0)
}

func gates(plugin reflect.Value) map[string]bool {
	found := map[string]bool{}
	for i := range plugin.NumField() {
		field, name := plugin.Field(i), plugin.Type().Field(i).Name
		switch {
		case field.Kind() == reflect.Bool && strings.HasPrefix(strings.ToLower(name), "enable"):
			found[name] = field.Bool()
		case field.Kind() == reflect.Struct && plugin.Type().Field(i).Anonymous:
			for name, on := range gates(field) {
				found[name] = on
			}
		}
	}
	return found
}

func (w *walk) into(value reflect.Value, depth int) {
	if depth > 12 || !value.IsValid() {
		return
	}
	switch value.Kind() {
	case reflect.Pointer:
		if value.IsNil() || w.visited[value.UnsafePointer()] {
			return
		}
		w.visited[value.UnsafePointer()] = true
		if !w.known(value) && w.follows(value.Type().Elem()) {
			w.into(value.Elem(), depth+1)
		}
	case reflect.Interface:
		if !value.IsNil() {
			w.into(value.Elem(), depth+1)
		}
	case reflect.Struct:
		if !w.follows(value.Type()) {
			return
		}
		if !value.CanAddr() {
			copied := reflect.New(value.Type()).Elem()
			copied.Set(value)
			value = copied
		}
		for i := range value.NumField() {
			field := value.Field(i)
			// Fields of other packages, too.
			w.into(reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem(), depth+1)
		}
	case reflect.Slice:
		for i := range value.Len() {
			one := value.Index(i)
			if one.Kind() == reflect.Struct {
				one = one.Addr()
			}
			w.into(one, depth+1)
		}
	case reflect.Map:
		for _, key := range value.MapKeys() {
			w.into(value.MapIndex(key), depth+1)
		}
	}
}

// known takes what a pointer holds, where it is of a kind that needs no further look.
func (w *walk) known(pointer reflect.Value) bool {
	switch one := pointer.Interface().(type) {
	case cache.SharedIndexInformer:
		w.all(one.GetStore().List())
	case cache.Store:
		w.all(one.List())
	case fwk.SharedLister:
		infos, err := one.NodeInfos().List()
		if err != nil {
			panic(err)
		}
		for _, info := range infos {
			w.event.Snapshot = append(w.event.Snapshot, described(info))
		}
	default:
		return w.object(one)
	}
	return true
}

func (w *walk) all(objects []any) {
	for _, object := range objects {
		w.object(object)
	}
}

func (w *walk) object(object any) bool {
	if w.objects[object] {
		return true
	}
	if !w.event.Objects.add(object) {
		return false
	}
	w.objects[object] = true
	return true
}

func (w *walk) follows(kind reflect.Type) bool {
	for _, prefix := range followed {
		if strings.HasPrefix(kind.PkgPath(), prefix) {
			return true
		}
	}
	return kind.PkgPath() == ""
}

// Writes what the watch cache has to know of Kubernetes' built-in resources: where they are stored,
// in which version, and where in their protobuf the fields of selectors lie. It comes from
// Kubernetes' own types and conversions; only the names of the fields, which are code there, are
// listed here.
//
//	kinds > watchcache/src/cache/kinds.tsv
//	kinds schema > watchcache/src/cache/json/schema.tsv    the fields of all messages
//	kinds columns > watchcache/src/cache/json/columns.tsv  the columns of all tables
//	kinds cases SEED COUNT > FILE                          random objects and their JSON
//	kinds tables SEED COUNT > FILE                         random objects and their rows in a table
package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
)

// A resource whose stored version is the one that is served, and whose stored bytes are what is
// served. Not so persistentvolumeclaims: a new one is stored without the phase that reads show.
type served struct {
	group, version, kind, plural string
	namespaced                   bool
	// Where it is stored, if that is not the plural name
	// (k8s.io/kubernetes/pkg/kubeapiserver, SpecialDefaultResourcePrefixes).
	prefix string
	// Whether kube-apiserver keeps it in its own watch cache (DefaultWatchCacheSizes there).
	uncached bool
	// A field whose values kube-apiserver indexes.
	index string
	// Fields of selectors, beside those of the metadata: GetAttrs of the resource's strategy, as
	// far as the version's field label conversions let them pass. `a|b` is a, or b if a is empty.
	fields string
}

var resources = []served{
	{version: "v1", kind: "Pod", plural: "pods", namespaced: true, index: "spec.nodeName",
		fields: "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork status.phase status.podIP status.nominatedNodeName"},
	{version: "v1", kind: "Node", plural: "nodes", prefix: "minions", fields: "spec.unschedulable"},
	{version: "v1", kind: "Event", plural: "events", namespaced: true, uncached: true, index: "involvedObject.uid",
		fields: "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason reportingComponent source=source.component|reportingComponent type"},
	{version: "v1", kind: "ConfigMap", plural: "configmaps", namespaced: true},
	{version: "v1", kind: "Secret", plural: "secrets", namespaced: true, fields: "type"},
	{version: "v1", kind: "Service", plural: "services", namespaced: true, prefix: "services/specs", fields: "spec.clusterIP spec.type"},
	{version: "v1", kind: "Endpoints", plural: "endpoints", namespaced: true, prefix: "services/endpoints"},
	{version: "v1", kind: "Namespace", plural: "namespaces", fields: "status.phase"},
	{version: "v1", kind: "ServiceAccount", plural: "serviceaccounts", namespaced: true},
	{version: "v1", kind: "PersistentVolume", plural: "persistentvolumes"},
	{version: "v1", kind: "ReplicationController", plural: "replicationcontrollers", namespaced: true, prefix: "controllers", fields: "status.replicas"},
	{version: "v1", kind: "LimitRange", plural: "limitranges", namespaced: true},
	{version: "v1", kind: "ResourceQuota", plural: "resourcequotas", namespaced: true},
	{version: "v1", kind: "PodTemplate", plural: "podtemplates", namespaced: true},
	{group: "apps", version: "v1", kind: "Deployment", plural: "deployments", namespaced: true},
	{group: "apps", version: "v1", kind: "ReplicaSet", plural: "replicasets", namespaced: true},
	{group: "apps", version: "v1", kind: "StatefulSet", plural: "statefulsets", namespaced: true},
	{group: "apps", version: "v1", kind: "DaemonSet", plural: "daemonsets", namespaced: true},
	{group: "apps", version: "v1", kind: "ControllerRevision", plural: "controllerrevisions", namespaced: true},
	{group: "autoscaling", version: "v2", kind: "HorizontalPodAutoscaler", plural: "horizontalpodautoscalers", namespaced: true},
	{group: "batch", version: "v1", kind: "Job", plural: "jobs", namespaced: true, fields: "status.successful=status.succeeded"},
	{group: "batch", version: "v1", kind: "CronJob", plural: "cronjobs", namespaced: true},
	{group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases", namespaced: true},
	{group: "discovery.k8s.io", version: "v1", kind: "EndpointSlice", plural: "endpointslices", namespaced: true},
	{group: "networking.k8s.io", version: "v1", kind: "Ingress", plural: "ingresses", namespaced: true, prefix: "ingress"},
	{group: "networking.k8s.io", version: "v1", kind: "IngressClass", plural: "ingressclasses"},
	{group: "networking.k8s.io", version: "v1", kind: "NetworkPolicy", plural: "networkpolicies", namespaced: true},
	{group: "node.k8s.io", version: "v1", kind: "RuntimeClass", plural: "runtimeclasses"},
	{group: "policy", version: "v1", kind: "PodDisruptionBudget", plural: "poddisruptionbudgets", namespaced: true},
	{group: "rbac.authorization.k8s.io", version: "v1", kind: "Role", plural: "roles", namespaced: true},
	{group: "rbac.authorization.k8s.io", version: "v1", kind: "RoleBinding", plural: "rolebindings", namespaced: true},
	{group: "rbac.authorization.k8s.io", version: "v1", kind: "ClusterRole", plural: "clusterroles"},
	{group: "rbac.authorization.k8s.io", version: "v1", kind: "ClusterRoleBinding", plural: "clusterrolebindings"},
	{group: "resource.k8s.io", version: "v1", kind: "ResourceClaim", plural: "resourceclaims", namespaced: true},
	{group: "resource.k8s.io", version: "v1", kind: "ResourceSlice", plural: "resourceslices", index: "spec.nodeName", fields: "spec.nodeName spec.driver"},
	{group: "resource.k8s.io", version: "v1", kind: "DeviceClass", plural: "deviceclasses"},
	{group: "scheduling.k8s.io", version: "v1", kind: "PriorityClass", plural: "priorityclasses"},
	{group: "storage.k8s.io", version: "v1", kind: "StorageClass", plural: "storageclasses"},
	{group: "storage.k8s.io", version: "v1", kind: "VolumeAttachment", plural: "volumeattachments"},
	{group: "storage.k8s.io", version: "v1", kind: "CSIDriver", plural: "csidrivers"},
	{group: "storage.k8s.io", version: "v1", kind: "CSINode", plural: "csinodes"},
	{group: "storage.k8s.io", version: "v1", kind: "CSIStorageCapacity", plural: "csistoragecapacities", namespaced: true},
}

type marshaler interface{ Marshal() ([]byte, error) }

func main() {
	var err error
	switch {
	case len(os.Args) == 1:
		err = writeKinds()
	case os.Args[1] == "schema":
		err = writeSchema()
	case os.Args[1] == "columns":
		err = writeColumns()
	case os.Args[1] == "tables" && len(os.Args) == 4:
		err = writeTables(os.Args[2], os.Args[3])
	case os.Args[1] == "cases" && len(os.Args) == 4:
		err = writeCases(os.Args[2], os.Args[3])
	default:
		err = fmt.Errorf("unknown arguments %q", os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kinds:", err)
		os.Exit(1)
	}
}

func writeKinds() error {
	fmt.Println("# Written by tests/oracle/kinds from Kubernetes' own types. Columns: group, version, resource, kind,")
	fmt.Println("# namespaced, storage prefix, whether kube-apiserver caches it, an empty object after its metadata,")
	fmt.Println("# index, fields of selectors as name=path:type.")
	for _, r := range resources {
		if err := write(r); err != nil {
			return fmt.Errorf("%s: %w", r.plural, err)
		}
	}
	return nil
}

func write(r served) error {
	scheme := legacyscheme.Scheme
	kind := schema.GroupVersionKind{Group: r.group, Version: r.version, Kind: r.kind}
	// The object that a bookmark carries: an empty one of the internal version, converted.
	internal, err := scheme.New(kind.GroupKind().WithVersion(runtime.APIVersionInternal))
	if err != nil {
		return err
	}
	external, err := scheme.UnsafeConvertToVersion(internal, kind.GroupVersion())
	if err != nil {
		return err
	}
	message, err := external.(marshaler).Marshal()
	if err != nil {
		return err
	}
	// The metadata is short: a tag, a byte of length.
	if message[0] != 0x0a || message[1] >= 0x80 {
		return fmt.Errorf("metadata does not come first: %x", message)
	}
	rest := message[2+int(message[1]):]
	var fields []string
	for _, field := range strings.Fields(r.fields) {
		name, paths, found := strings.Cut(field, "=")
		if !found {
			paths = name
		}
		if _, _, err := scheme.ConvertFieldLabel(kind, name, ""); err != nil {
			return err
		}
		var places []string
		for _, path := range strings.Split(paths, "|") {
			place, err := locate(reflect.TypeOf(external).Elem(), path)
			if err != nil {
				return err
			}
			places = append(places, place)
		}
		fields = append(fields, name+"="+strings.Join(places, "|"))
	}
	prefix := r.prefix
	if prefix == "" {
		prefix = r.plural
	}
	fmt.Println(strings.Join([]string{
		r.group, r.version, r.plural, r.kind, fmt.Sprint(r.namespaced), prefix, fmt.Sprint(!r.uncached),
		hex.EncodeToString(rest), r.index, strings.Join(fields, " "),
	}, "\t"))
	return nil
}

// locate finds a field by its path of JSON names: the numbers of its protobuf fields, and its type.
func locate(of reflect.Type, path string) (string, error) {
	var numbers []string
	for _, name := range strings.Split(path, ".") {
		found := false
		for i := range of.NumField() {
			field := of.Field(i)
			json, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if json != name {
				continue
			}
			tag := strings.Split(field.Tag.Get("protobuf"), ",")
			numbers = append(numbers, tag[1])
			of, found = field.Type, true
			if of.Kind() == reflect.Pointer {
				of = of.Elem()
			}
			break
		}
		if !found {
			return "", fmt.Errorf("%s has no field %s", of, name)
		}
	}
	place := strings.Join(numbers, ".")
	switch of.Kind() {
	case reflect.String:
		return place + ":text", nil
	case reflect.Bool:
		return place + ":bool", nil
	case reflect.Int32:
		return place + ":number", nil
	}
	return "", fmt.Errorf("%s is a %s", path, of)
}

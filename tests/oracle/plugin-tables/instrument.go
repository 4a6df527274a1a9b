package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

const directory = "pkg/scheduler/framework/plugins"

// plugin is one whose tables are replayed.
type plugin struct {
	Package, Type, Maker, Name string
}

var plugins = []plugin{
	{"nodeunschedulable", "NodeUnschedulable", "New", "NodeUnschedulable"},
	{"nodename", "NodeName", "New", "NodeName"},
	{"tainttoleration", "TaintToleration", "New", "TaintToleration"},
	{"nodeaffinity", "NodeAffinity", "New", "NodeAffinity"},
	{"nodeports", "NodePorts", "New", "NodePorts"},
	{"noderesources", "Fit", "NewFit", "NodeResourcesFit"},
	{"noderesources", "BalancedAllocation", "NewBalancedAllocation", "NodeResourcesBalancedAllocation"},
	{"volumerestrictions", "VolumeRestrictions", "New", "VolumeRestrictions"},
	{"nodevolumelimits", "CSILimits", "NewCSI", "NodeVolumeLimits"},
	{"volumebinding", "VolumeBinding", "New", "VolumeBinding"},
	{"volumezone", "VolumeZone", "New", "VolumeZone"},
	{"podtopologyspread", "PodTopologySpread", "New", "PodTopologySpread"},
	{"interpodaffinity", "InterPodAffinity", "New", "InterPodAffinity"},
	{"imagelocality", "ImageLocality", "New", "ImageLocality"},
	// What stands behind a step, which tests call by itself.
	{"volumebinding", "volumeBinder", "", "VolumeBinding"},
	{"nodeports", "", "", "NodePorts"},
	{"defaultpreemption", "DefaultPreemption", "", "DefaultPreemption"},
}

// steps that are recorded: a plugin has some of them.
var steps = []string{
	"PreFilter", "Filter", "PreScore", "Score", "NormalizeScore", "FindPodVolumes", "SelectVictimsOnNode",
}

// instrument renames, in a copy of Kubernetes, the steps of each plugin and adds such that call them
// and record what was asked and answered.
func instrument(copied string) error {
	for _, plugin := range plugins {
		if err := plugin.instrument(filepath.Join(copied, directory, plugin.Package)); err != nil {
			return fmt.Errorf("%s: %w", plugin.Name, err)
		}
	}
	return nil
}

func (p plugin) instrument(folder string) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return err
	}
	wrapped := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		if err := p.rename(file, wrapped); err != nil {
			return err
		}
	}
	answers := slices.ContainsFunc(steps, func(step string) bool { return wrapped[step] }) || wrapped["Fits"]
	if (p.Maker != "" && !wrapped[p.Maker]) || !answers {
		return fmt.Errorf("no longer what it was: %v", wrapped)
	}
	var text bytes.Buffer
	if err := wrapper.Execute(&text, struct {
		plugin
		Has map[string]bool
	}{p, wrapped}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "recorded_"+strings.ToLower(p.Type)+".go"), text.Bytes(), 0o644)
}

// rename puts "genuine" before the names of what is wrapped, where it is declared.
func (p plugin) rename(path string, wrapped map[string]bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	positions := token.NewFileSet()
	file, err := parser.ParseFile(positions, path, text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	var places []int
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok || !p.wraps(function) {
			continue
		}
		wrapped[function.Name.Name] = true
		places = append(places, positions.Position(function.Name.Pos()).Offset)
		if function.Name.Name == p.Maker {
			wrapped["features"] = len(function.Type.Params.List) == 4
		}
	}
	slices.Reverse(places)
	for _, place := range places {
		text = slices.Insert(text, place, []byte("genuine")...)
	}
	return os.WriteFile(path, text, 0o644)
}

func (p plugin) wraps(function *ast.FuncDecl) bool {
	if function.Recv == nil {
		name := function.Name.Name
		return name == p.Maker || p.Type == "" && name == "Fits"
	}
	pointer, ok := function.Recv.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	receiver, ok := pointer.X.(*ast.Ident)
	return ok && receiver.Name == p.Type && slices.Contains(steps, function.Name.Name)
}

var wrapper = template.Must(template.New("").Parse(`package {{.Package}}

import (
	"context"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/recorder"
)

var (
	_ context.Context
	_ runtime.Object
	_ fwk.Plugin
	_ *v1.Pod
	_ feature.Features
	_ *policyv1.PodDisruptionBudget
	_ klog.Logger
)
{{if .Maker}}{{if .Has.features}}
func {{.Maker}}(ctx context.Context, arguments runtime.Object, handle fwk.Handle, features feature.Features) (fwk.Plugin, error) {
	made, err := genuine{{.Maker}}(ctx, arguments, handle, features)
{{else}}
func {{.Maker}}(ctx context.Context, arguments runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	made, err := genuine{{.Maker}}(ctx, arguments, handle)
{{end}}	if err == nil {
		recorder.Made(made, arguments)
	}
	return made, err
}
{{end}}{{if .Has.PreFilter}}
func (p *{{.Type}}) PreFilter(ctx context.Context, state fwk.CycleState, pod *v1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	event := recorder.Call("{{.Name}}", p, "PreFilter", pod).Among(nodes)
	result, status := p.genuinePreFilter(ctx, state, pod, nodes)
	event.Only(result).Answered(status)
	return result, status
}
{{end}}{{if .Has.Filter}}
func (p *{{.Type}}) Filter(ctx context.Context, state fwk.CycleState, pod *v1.Pod, node fwk.NodeInfo) *fwk.Status {
	event := recorder.Call("{{.Name}}", p, "Filter", pod).On(node)
	status := p.genuineFilter(ctx, state, pod, node)
	event.Answered(status)
	return status
}
{{end}}{{if .Has.PreScore}}
func (p *{{.Type}}) PreScore(ctx context.Context, state fwk.CycleState, pod *v1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	event := recorder.Call("{{.Name}}", p, "PreScore", pod).Among(nodes)
	status := p.genuinePreScore(ctx, state, pod, nodes)
	event.Answered(status)
	return status
}
{{end}}{{if .Has.Score}}
func (p *{{.Type}}) Score(ctx context.Context, state fwk.CycleState, pod *v1.Pod, node fwk.NodeInfo) (int64, *fwk.Status) {
	event := recorder.Call("{{.Name}}", p, "Score", pod).On(node)
	score, status := p.genuineScore(ctx, state, pod, node)
	event.Score = score
	event.Answered(status)
	return score, status
}
{{end}}{{if .Has.NormalizeScore}}
func (p *{{.Type}}) NormalizeScore(ctx context.Context, state fwk.CycleState, pod *v1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	event := recorder.Call("{{.Name}}", p, "NormalizeScore", pod)
	status := p.genuineNormalizeScore(ctx, state, pod, scores)
	event.Scored(scores).Answered(status)
	return status
}
{{end}}{{if .Has.FindPodVolumes}}
func (p *{{.Type}}) FindPodVolumes(logger klog.Logger, pod *v1.Pod, claims *PodVolumeClaims, node *v1.Node) (*PodVolumes, ConflictReasons, error) {
	event := recorder.Call("{{.Name}}", p, "Filter", pod).OnBare(node)
	volumes, reasons, err := p.genuineFindPodVolumes(logger, pod, claims, node)
	var status *fwk.Status
	if err != nil {
		status = fwk.AsStatus(err)
	} else if len(reasons) > 0 {
		status = fwk.NewStatus(fwk.UnschedulableAndUnresolvable)
		for _, reason := range reasons {
			status.AppendReason(string(reason))
		}
	}
	event.Answered(status)
	return volumes, reasons, err
}
{{end}}{{if .Has.Fits}}
func Fits(pod *v1.Pod, node fwk.NodeInfo) bool {
	event := recorder.Call("{{.Name}}", &NodePorts{}, "Filter", pod).On(node)
	fits := genuineFits(pod, node)
	if fits {
		event.Answered(nil)
	} else {
		event.Answered(fwk.NewStatus(fwk.Unschedulable, ErrReason))
	}
	return fits
}
{{end}}{{if .Has.SelectVictimsOnNode}}
func (p *{{.Type}}) SelectVictimsOnNode(ctx context.Context, state fwk.CycleState, pod *v1.Pod, node fwk.NodeInfo, budgets []*policyv1.PodDisruptionBudget) ([]*v1.Pod, int, *fwk.Status) {
	event := recorder.Call("{{.Name}}", p, "SelectVictims", pod).On(node).Protected(budgets).Beside(p.fh)
	victims, violations, status := p.genuineSelectVictimsOnNode(ctx, state, pod, node, budgets)
	event.Victims(victims, violations).Answered(status)
	return victims, violations, status
}
{{end}}`))

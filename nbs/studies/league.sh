#!/usr/bin/env bash
# The studies of "Which tricks help?": league.sh DATA STUDY [flags of cifar-study, such as --dry-run or --workers 2]
#
# DATA is a folder or an archive of CIFAR-10, or "cifar10", which is downloaded. A study is kept in a folder of its name
# next to this script and, packed, in a file; an interrupted study is resumed, from the file too. PROTOCOL.md says
# what was decided before the first run.
set -euo pipefail
data=$([ -e "$1" ] && realpath "$1" || echo "$1") study=$2
shift 2
cd "$(dirname "$0")"
[ "$data" = cifar10 ] && root=() || root=(--root "$data")
[ -e "$study.safetensors" ] && [ ! -e "$study" ] &&
    python -c "from cifar_fastai.studies.study import unpack_study; unpack_study('$study.safetensors', '$study')"
pack() { # with the logits of a few arms, for calibration
    [ ! -e "$study/study.json" ] || python -c "from cifar_fastai.studies.study import pack_study
pack_study('$study', '$study.safetensors', ['baseline', 'MixUp()', 'CutMix()', 'LabelSmoothing()', 'EMA()', 'SAM()', 'AutoAugment()'])"
}
trap pack EXIT

common=(--dataset cifar10 "${root[@]}" --threads 1 --precision bf16 --studies . --name "$study" "$@")
recipe=(--optimizer nesterov --schedule cosine --lr 0.1 "${common[@]}")
small() { # fraction, epochs: validated once, at the end
    echo --model networks:resnet8 --bs 64 --fraction "$1" --epochs "$2" --valid-every "$2"
}
leaders() { # the first n leading tricks of small-data
    [ -e leaders.txt ] || { echo 'leaders.txt is missing: it is written when small-data is complete.' >&2; exit 1; }
    mapfile -t arms < <(head -n "$1" leaders.txt)
}
defaults=(
    'MixUp()' 'CutMix()' 'RICAP()' 'ResizeMix()' 'ManifoldMixUp()' 'Cutout()' 'RandomErasing()' 'RandomResizedCrop()'
    'AugMix()' 'RepeatedAugment()' 'AutoAugment()' 'RandAugment()' 'TrivialAugment()' 'LabelSmoothing()'
    'loss=BinaryCrossEntropy' "KD('resnet20')" "DKD('resnet20')" 'SAM()' 'ASAM()' 'LookSAM()' 'EMA()' 'SWA()'
    'Lookahead()' 'StochasticDepth()' 'ShakeDrop()' 'GradientClip()' 'AGC()' 'WeightStandardization()'
    'GhostBatchNorm()' 'Whiten()' 'SelectiveBackprop()' 'ProgressiveResize()')
published=('MixUp(0.2)' 'Cutout(8)' 'RandAugment(3, 4)') # settings of papers that differ from the defaults
ablations=('Flip(p=0)' 'RandomCrop(pad=0)') # without an augmentation that every other arm has
controls=('GradientClip(max_norm=1e9)' 'label_noise=0.4') # changes nothing; harms

case $study in
small-data)
    cifar-study "${defaults[@]}" "${published[@]}" "${ablations[@]}" "${controls[@]}" $(small 0.02 100) "${recipe[@]}" \
        --seeds 10 --logits ;;
equal-time) cifar-study 'SAM()' 'ASAM()' "KD('resnet20')" --equal-time $(small 0.02 100) "${recipe[@]}" --seeds 10 ;;
pairs) leaders 5; cifar-study "${arms[@]}" --pairs $(small 0.02 100) "${recipe[@]}" --seeds 10 ;;
length-25 | length-50 | length-200)
    leaders 5; cifar-study "${arms[@]}" $(small 0.02 "${study#length-}") "${recipe[@]}" --seeds 10 ;;
data-50) leaders 5; cifar-study "${arms[@]}" $(small 0.01 200) "${recipe[@]}" --seeds 10 ;; # images per class
data-250) leaders 5; cifar-study "${arms[@]}" $(small 0.05 40) "${recipe[@]}" --seeds 10 ;;
data-1000) leaders 5; cifar-study "${arms[@]}" $(small 0.2 10) "${recipe[@]}" --seeds 10 ;;
tuned)
    leaders 3
    cifar-study "${arms[@]}" --tune 'lr=0.05,0.1,0.2 wd=5e-4,2e-3' $(small 0.02 100) "${recipe[@]}" --seeds 10 ;;
speedrun)
    cifar-study 'without=Flip' 'without=LabelSmoothing' 'without=Lookahead' --row speedrun/airbench94 --epochs 3 \
        --valid-every 3 "${common[@]}" --seeds 5 ;;
full) # for a GPU
    cifar-study "${defaults[@]}" "${ablations[@]}" "${controls[@]}" --model resnet18 --epochs 200 --bs 128 --valid-every 10 \
        "${recipe[@]}" --seeds 5 ;;
*) echo "No study '$study': look into league.sh." >&2; exit 2 ;;
esac

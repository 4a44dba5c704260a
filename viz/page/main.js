const e=document.getElementById('a'); Plotly.newPlot(e,[{x:[1,2,3],y:[1,3,2]}]);
